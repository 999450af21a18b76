"""Where jobs run. A backend starts supervisors and brings their verdicts back."""
