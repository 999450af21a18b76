"""One attempt, in a supervisor process: event loop, process group, usage; the reaper of dead supervisors."""
