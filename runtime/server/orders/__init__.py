"""Orders in: the API, OSC, playlists and the timetable; every order goes through `control.py`."""
