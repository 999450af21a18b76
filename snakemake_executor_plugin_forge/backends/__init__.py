"""Where jobs run. Each backend is a folder; the registry finds them."""
