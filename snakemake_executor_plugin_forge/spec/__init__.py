"""Pure values and decisions: job, host, plan, outcome, errors. Nothing here touches anything."""
