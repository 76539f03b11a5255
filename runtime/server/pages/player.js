// Plays the server's fragmented MP4 through Media Source Extensions, or its WebRTC where the address or the configuration says
// so, for days.
//
// It reconnects by itself, keeps the last picture on a canvas behind the video meanwhile, keeps close to the live edge,
// keeps its buffer short, and reports what the screen has really shown, so that the server can tell it to reload.
//
// Where a browser has no Media Source Extensions (an iPhone before iOS 17.1), or none that play the video, or where WebSockets do
// not get through, the picture comes by other ways.

import { asked, otherWays } from "./otherways.js";
import { openDirect } from "./webrtc.js";

const REPORT = 2000; // ms between reports
const SILENCE = 6000; // ms without data after which the connection is given up
const BEHIND = 2.5; // seconds behind the live edge at which it jumps
const EDGE = 0.4; // seconds of buffer that it jumps to
const KEPT = 10; // seconds of the past that stay in the buffer
const STEP = 200; // ms between corrections of a screen that keeps in step with others
const DELAY = 0.9; // seconds that all screens of a wall are behind the server
const LEAP = 0.4; // seconds out of step at which it jumps instead of playing faster or slower
const AWAY = 30000; // ms between tries to get a connection after all
const BROKEN = 30000; // ms of errors of the video, no frame shown between them, after which it is not tried any more
const REFUSED = 3; // connections in a row that were never opened, after which the picture comes by other ways
const FULL = 60000; // ms until WebRTC is tried again where the server had no place
const Source = window.MediaSource || window.ManagedMediaSource;

// Relative to the page, which may stand below a path.
const place = (path) => new URL(path, document.baseURI);

function socketPlace(said) {
  const address = place("ws/video");
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.search = new URLSearchParams(said);
  return address;
}

export class Player {
  constructor(video, still, { screen, via = "", preview = false, overlay = null, frame = null }) {
    Object.assign(this, { video, still, screen, via, preview, overlay, frame });
    this.why = ""; // not by WebRTC, where it was asked for
    this.sync = false;
    this.marks = []; // [media time at the browser's time 0 in ms, round trip in ms] of the last answers to a ping
    this.tries = 0;
    this.heard = performance.now();
    this.frames = 0; // frames that were put on the screen
    this.fps = 0;
    this.refused = 0;
    this.ended = false; // the picture comes by HLS or Motion JPEG, which is the browser's own business
    this.countFrames();
    this.watchPlace();
    if (!Source && via !== "webrtc") {
      this.end();
      return;
    }
    this.connect();
    setInterval(() => this.watch(), 500);
    setInterval(() => this.report(), REPORT);
    setInterval(() => this.keepStep(), STEP);
    video.addEventListener("error", () => this.failed());
  }

  // In a frame of another page it may be scrolled out of sight: then the browser shows no frames, which is not frozen.
  watchPlace() {
    this.inSight = true;
    if (!window.IntersectionObserver) return;
    new IntersectionObserver((seen) => (this.inSight = seen[seen.length - 1].isIntersecting)).observe(this.video.parentElement);
  }

  countFrames() {
    const video = this.video;
    if (video.requestVideoFrameCallback) {
      let last = -1, presented = 0;
      const count = (_, meta) => {
        // A busy page is called for some of its frames alone; the compositor counts them all, those of before a restart anew.
        if (meta.mediaTime !== last) this.frames += Math.max(1, meta.presentedFrames - presented);
        last = meta.mediaTime;
        presented = meta.presentedFrames;
        video.requestVideoFrameCallback(count);
      };
      video.requestVideoFrameCallback(count);
      this.shown = () => this.frames;
    } else if (video.getVideoPlaybackQuality) {
      this.shown = () => video.getVideoPlaybackQuality().totalVideoFrames - video.getVideoPlaybackQuality().droppedVideoFrames;
    } else if (video.webkitDecodedFrameCount !== undefined) {
      this.shown = () => video.webkitDecodedFrameCount - (video.webkitDroppedFrameCount || 0);
    } else {
      this.shown = () => Math.round(video.currentTime * this.fps); // where nothing counts, whether it moves
    }
  }

  connect() {
    const socket = new WebSocket(socketPlace({ screen: this.screen, preview: this.preview, via: this.via, why: this.why }));
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.heard = performance.now();
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.heard = performance.now();
      if (typeof data === "string") this.told(JSON.parse(data));
      else this.feed(data);
    };
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.refused = 0;
    };
    socket.onclose = () => {
      if (!opened) this.refused++;
      if (socket !== this.socket) return;
      if (this.refused >= REFUSED) this.lookElsewhere();
      else this.again();
    };
  }

  // The server answers, but WebSockets do not get through: a proxy that does not pass them on. It tells the log.
  async lookElsewhere() {
    const { socket } = this;
    const alive = await asked("ws/video").then(() => false, (error) => error.message === "426");
    if (socket !== this.socket) return; // another connection is there by now
    if (!alive) {
      this.again();
      return;
    }
    this.end();
    const knock = () => {
      const socket = new WebSocket(socketPlace({ screen: this.screen, preview: this.preview }));
      socket.onopen = () => location.reload();
      socket.onclose = () => setTimeout(knock, AWAY);
    };
    setTimeout(knock, AWAY);
  }

  leave() {} // the connection by WebRTC, if there is one

  again() {
    this.socket = null;
    if (this.ended) return;
    const wait = Math.min(500 * 2 ** this.tries++, 5000);
    setTimeout(() => this.socket === null && this.connect(), wait);
  }

  restart() {
    if (this.socket) this.socket.close();
    this.again();
  }

  // A decoder may fail once, as when a driver is reset; one that fails every time would be tried for ever.
  failed() {
    if (this.ended) return;
    const shown = this.shown();
    const now = performance.now();
    if (shown !== this.atError || document.visibilityState !== "visible") this.broken = now;
    this.atError = shown;
    if (now - this.broken < BROKEN) this.restart();
    else this.say("this browser cannot decode the video");
  }

  async told(message) {
    if (message.type === "init") this.begin(message);
    if (message.type === "picture") this.sendPicture();
    if (message.type === "pong") this.mark(message);
    if (message.type === "overlay" && this.overlay) this.overlay.told(message);
    if (message.type === "reload") {
      // Only when there is a page to load: the browser's own error page would stay for ever.
      const alive = await fetch(place("./"), { cache: "no-store" }).then((answer) => answer.ok, () => false);
      if (alive) location.reload();
    }
  }

  begin({ mime, fps, width, height, via, view = {} }) {
    if (this.frame) this.frame(view);
    this.fps = fps;
    this.sync = Boolean(view.sync);
    this.marks = [];
    this.keepStill(width, height);
    if (this.shown() !== this.atBegin) this.tries = 0; // else the waits between tries grow
    this.atBegin = this.shown();
    this.telling = false;
    this.queue = [];
    this.source = this.buffer = null;
    this.leave();
    this.direct = this.opening = via === "webrtc";
    if (this.direct) this.beginDirect();
    else this.beginSource(mime);
  }

  async beginDirect() {
    const { socket } = this;
    const lost = () => socket === this.socket && this.restart();
    try {
      const leave = await openDirect(this.video, lost);
      if (socket === this.socket) Object.assign(this, { leave, opening: false, heard: performance.now() });
      else leave();
    } catch (error) {
      if (socket !== this.socket) return; // the server has gone
      const why = `not by WebRTC: ${error.message}`;
      console.warn(why);
      Object.assign(this, { via: "mse", why });
      if (error.full) setTimeout(() => this.tryDirect(), FULL);
      if (Source) this.restart();
      else this.end();
    }
  }

  // A place by WebRTC may be free by now: of a viewer that vanished the server knows after half a minute.
  tryDirect() {
    Object.assign(this, { via: "webrtc", why: "" });
    if (Source) this.restart();
  }

  // Neither WebRTC nor Media Source Extensions, or not with what they would have to play. What comes instead has the overlay
  // burned in.
  end() {
    if (this.ended) return;
    this.ended = true;
    const { socket, overlay } = this;
    this.socket = null;
    if (socket) socket.close();
    this.leave();
    this.video.srcObject = null;
    Object.assign(this, { source: null, buffer: null, direct: false, sync: false });
    if (overlay) overlay.told({ shown: false });
    otherWays(this.video, this.preview ? null : this.screen, this.frame);
  }

  beginSource(mime) {
    this.video.srcObject = null;
    if (!Source) {
      this.end();
      return;
    }
    if (Source.isTypeSupported && !Source.isTypeSupported(mime)) {
      this.say(`this browser does not play ${mime}`);
      return;
    }
    const source = new Source();
    if (!window.MediaSource) this.video.disableRemotePlayback = true; // which a ManagedMediaSource asks for
    this.source = source;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => {
      if (source !== this.source) return;
      try {
        this.buffer = source.addSourceBuffer(mime);
      } catch (error) {
        this.failed();
        return;
      }
      this.buffer.mode = "segments";
      this.buffer.addEventListener("updateend", () => this.pump());
      this.pump();
    });
    this.video.src = this.url;
    this.play();
  }

  // A last connection tells the log why the picture comes by other ways.
  say(why) {
    if (this.telling || this.ended) return; // that connection is not there yet
    Object.assign(this, { via: "mse", why });
    const again = this.said !== undefined && this.shown() - this.said < 100; // frames: it has not played in between
    this.said = this.shown();
    if (again) this.end();
    else {
      this.telling = true;
      this.restart();
    }
  }

  // Some let nothing play that nobody has touched, as an iPhone that saves power; Motion JPEG is no video to them.
  play() {
    this.video.play().catch((error) => error.name === "NotAllowedError" && this.say("this browser lets nothing play by itself"));
  }

  keepStill(width, height) {
    const { video, still } = this;
    if (!still || video.readyState < 2) return;
    still.width = video.videoWidth || width;
    still.height = video.videoHeight || height;
    still.getContext("2d").drawImage(video, 0, 0, still.width, still.height);
    still.classList.add("kept");
  }

  feed(data) {
    this.queue.push(data);
    if (this.queue.length > 400) this.restart(); // the source does not take them any more
    else this.pump();
  }

  pump() {
    const { buffer, video } = this;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    try {
      const ranges = buffer.buffered;
      if (ranges.length && video.currentTime - ranges.start(0) > 2 * KEPT) {
        buffer.remove(0, video.currentTime - KEPT);
        return;
      }
      if (this.queue.length) {
        const size = this.queue.reduce((sum, part) => sum + part.byteLength, 0);
        const joined = new Uint8Array(size);
        let at = 0;
        for (const part of this.queue) {
          joined.set(new Uint8Array(part), at);
          at += part.byteLength;
        }
        this.queue = [];
        buffer.appendBuffer(joined);
      }
    } catch (error) {
      this.restart();
    }
  }

  ahead() {
    const { video, buffer } = this;
    try {
      const ranges = buffer ? buffer.buffered : { length: 0 };
      return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - video.currentTime) : 0;
    } catch (error) {
      return 0;
    }
  }

  watch() {
    const { video, buffer } = this;
    // While WebRTC opens, which has a patience of its own, nothing comes here.
    if (this.socket && !this.opening && performance.now() - this.heard > SILENCE) this.restart();
    if (this.direct && video.paused) this.play();
    let ranges;
    try {
      ranges = buffer && buffer.buffered;
    } catch (error) {
      return;
    }
    if (!ranges || !ranges.length) return;
    const first = ranges.start(ranges.length - 1);
    const end = ranges.end(ranges.length - 1);
    if (video.currentTime < first || (!this.sync && end - video.currentTime > BEHIND)) video.currentTime = Math.max(first, end - EDGE);
    if (video.paused) this.play();
  }

  report() {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) return;
    if (this.opening) return; // whether this browser's network lets WebRTC through: no picture yet is not a frozen one
    const visible = document.visibilityState === "visible" && this.inSight;
    const said = { shown: this.shown(), buffered: this.ahead(), visible };
    if (this.sync) said.skew = this.skew === undefined ? null : 1000 * this.skew;
    if (this.sync || this.direct) said.ping = performance.now(); // by WebRTC the answer is all that comes here
    this.socket.send(JSON.stringify(said));
  }

  // A wall in step: where the server's frame is now, by the answer with the shortest way; every screen shows what was there
  // DELAY before.
  mark({ ping, media }) {
    const now = performance.now();
    const mark = [media - (now + ping) / 2000, now - ping];
    // The server has stood still since: what was heard before does not hold any more.
    this.marks = this.marks.filter((one) => Math.abs(one[0] - mark[0]) < (one[1] + mark[1]) / 1000 + 0.1);
    this.marks.push(mark);
    if (this.marks.length > 10) this.marks.shift();
  }

  keepStep() {
    const { video, marks } = this;
    if (!this.sync || !marks.length || video.readyState < 2) {
      if (!this.sync && video.playbackRate !== 1) video.playbackRate = 1;
      return;
    }
    const [base] = marks.reduce((best, one) => (one[1] < best[1] ? one : best));
    this.skew = video.currentTime - (base + performance.now() / 1000 - DELAY);
    if (Math.abs(this.skew) > LEAP && this.ahead() + this.skew > 0) video.currentTime -= this.skew;
    else video.playbackRate = 1 - Math.max(-0.1, Math.min(0.1, this.skew));
  }

  // What the screen shows, small, for the operator's list of screens.
  sendPicture() {
    const { video, overlay } = this;
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN || video.readyState < 2) return;
    const small = document.createElement("canvas");
    const scale = 320 / Math.max(video.videoWidth, video.videoHeight);
    small.width = Math.max(1, Math.round(scale * video.videoWidth));
    small.height = Math.max(1, Math.round(scale * video.videoHeight));
    const pen = small.getContext("2d");
    try {
      pen.drawImage(video, 0, 0, small.width, small.height);
      if (overlay && !overlay.canvas.hidden) pen.drawImage(overlay.canvas, 0, 0, small.width, small.height);
      this.socket.send(JSON.stringify({ picture: small.toDataURL("image/jpeg", 0.6) }));
    } catch (error) {
      // a canvas that may not be read: then there is no picture for the list
    }
  }
}
