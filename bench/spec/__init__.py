"""What a run is and what it produced: frozen types that check themselves and change nothing."""
