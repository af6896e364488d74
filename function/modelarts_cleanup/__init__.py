"""Delete ModelArts hyper clusters when their time is up, and tell what happened."""
