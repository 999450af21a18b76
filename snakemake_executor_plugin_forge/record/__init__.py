"""What an attempt leaves behind: the job directory and the ways to read it again."""
