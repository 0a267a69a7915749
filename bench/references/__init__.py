"""What the service is measured against: the same contract served by as little as possible, and by agent libraries."""
