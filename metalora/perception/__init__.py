"""Looking at pictures: where faces are, whose they are, and how well a picture fits a prompt."""
