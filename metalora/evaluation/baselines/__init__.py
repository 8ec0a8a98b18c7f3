"""Published methods drawn in environments of their own: one runner each, jobs in as JSONL, images and manifest out."""
