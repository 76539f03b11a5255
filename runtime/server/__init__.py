"""The server: one generator process, watched and restarted, and a web process that shows its frames and takes orders.

    start.py    `everframe serve`: the configuration, the service, uvicorn
    config.py   the configuration file
    service.py  everything put together
    guard.py, answers.py, discretion.py, addresses.py   what stands before every route, and what may be said
    app.py      the web application: the routes of the three rooms and the pages
    pictures/   frames to fragments, the channel that never waits, transports, pushes, viewers
    orders/     the API, OSC, playlists, the timetable, and control.py, through which every order goes
    survival/   the generator's process and its watchdog, health, metrics, logs
    fleet/      many streams on a Ray cluster behind one gateway
    pages/      what browsers load

Needs the extra `serve`. Threads and what they share: docs/serve.md.
"""
