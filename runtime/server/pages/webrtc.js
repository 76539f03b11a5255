// The server's video by WebRTC (WHEP): the shortest way from the server to the screen, without a buffer.

const GATHER = 1000; // ms until the browser's addresses are known; the server finds those that are missing
const PATIENCE = 10000; // ms until the server's answer, and from there until the first picture

const place = (path) => new URL(path, document.baseURI);

// Plays in the video until lost() is called, or what it returns. Throws an Error that says in one sentence why it cannot.
export async function openDirect(video, lost) {
  if (!window.RTCPeerConnection) throw new Error("this browser has no WebRTC");
  const peer = new RTCPeerConnection();
  const { receiver } = peer.addTransceiver("video", { direction: "recvonly" });
  receiver.jitterBufferTarget = 0; // frames are shown when they come
  if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0; // the same by its former name
  let left = "";
  const leave = () => {
    peer.close();
    removeEventListener("pagehide", leave);
    if (left) fetch(left, { method: "DELETE", keepalive: true }).catch(() => {});
    left = "";
  };
  addEventListener("pagehide", leave);
  try {
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    const headers = { "Content-Type": "application/sdp" };
    const body = peer.localDescription.sdp;
    const answer = await inTime(fetch(place("whep?overlay=false"), { method: "POST", headers, body }));
    if (!answer.ok) {
      const error = new Error(`the server answers ${answer.status}: ${await reason(answer)}`);
      throw Object.assign(error, { full: answer.status === 503 });
    }
    left = new URL(answer.headers.get("Location"), answer.url);
    await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    video.srcObject = new MediaStream([receiver.track]);
    video.play().catch(() => {});
    await shown(peer, video);
  } catch (error) {
    leave();
    throw error;
  }
  peer.onconnectionstatechange = () => {
    if (["failed", "closed"].includes(peer.connectionState)) lost();
  };
  return leave;
}

function gathered(peer) {
  return new Promise((done) => {
    if (peer.iceGatheringState === "complete") done();
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
    setTimeout(done, GATHER);
  });
}

function inTime(answer) {
  const late = new Promise((_, failed) => {
    setTimeout(() => failed(new Error(`no answer of the server within ${PATIENCE / 1000} s`)), PATIENCE);
  });
  return Promise.race([answer, late]);
}

async function reason(answer) {
  const found = await answer.json().catch(() => ({}));
  return typeof found.detail === "string" ? found.detail : "no reason";
}

function shown(peer, video) {
  return new Promise((done, failed) => {
    const late = setTimeout(() => failed(new Error(`no picture within ${PATIENCE / 1000} s: is UDP let through?`)), PATIENCE);
    const came = () => {
      clearTimeout(late);
      done();
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(came);
    else video.addEventListener("playing", came, { once: true });
    peer.onconnectionstatechange = () => {
      if (peer.connectionState !== "failed") return;
      clearTimeout(late);
      failed(new Error("no connection: is UDP let through?"));
    };
  });
}
