"""Why a run's model draws what it draws: what it perceives, and what its parameters changed."""
