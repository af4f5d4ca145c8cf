"""Real training logs, read from app exports and played back as live workouts."""
