"""The two stages as LightningModules, their schedule, and runs that continue where they were cut."""
