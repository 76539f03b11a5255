"""The server: one generator process, watched and restarted, and a web process that shows its frames and takes orders.

    config.py      the configuration file
    playlist.py    playlists, which count stream time, and the timetable, which counts wall-clock time
    worker.py      the generator process: stream, playlist, state on disk
    supervisor.py  its watchdog: restarts it when it dies or hangs, hands its chunks on
    channel.py     one frame every 1/fps, whatever happens; from here on nothing can slow the generator
    fmp4.py        frames to fragmented MP4 in memory, and a sliding HLS window of the same fragments
    push.py        RTMP, SRT, UDP to a mixer
    viewers.py     who is watching, and whose picture stands still
    control.py     every order, from the API, the timetable and OSC, in one place, kept on disk
    metrics.py     Prometheus
    app.py         HTTP and WebSocket
    osc.py, notify.py, command.py

Needs the extra `serve`. Threads and what they share: docs/serve.md.
"""
