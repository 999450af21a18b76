"""The processes that fork jobs (nursery, launcher), their pool of supervisors, and the channels between them."""
