"""The processes that fork jobs (zygote, launcher), their pool of supervisors, and the channels between them."""
