"""Photos of people: reading, checking, cropping, caching, and the benchmark's layout."""
