"""The engines room: the bundle on disk, and one interface over every backend that runs its graphs. Never imports torch."""
