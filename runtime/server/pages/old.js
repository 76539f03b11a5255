// For browsers that know no modules, or not these, as in old televisions: Motion JPEG, which any of them shows, asked for again
// when it ends. In the JavaScript of their time.
(function () {
  var PATIENCE = 8000; // ms until the player must have begun
  var ASK = 10000; // ms between questions for the screen's view
  var LONGEST = 3600000; // ms until a browser that knows modules is given them again
  var modules = "noModule" in document.createElement("script");
  function begin() {
    if (window.player) return;
    var picture = document.createElement("img");
    var video = document.getElementById("video");
    var word = document.getElementById("word");
    var life = null;
    picture.alt = "";
    function load() {
      picture.src = "video.mjpeg?" + new Date().getTime();
    }
    function asked(key) {
      var found = new RegExp("[?&]" + key + "=([^&]*)").exec(location.search);
      if (!found) return "";
      var plain = found[1].replace(/\+/g, " ");
      try {
        return decodeURIComponent(plain);
      } catch (error) {
        return plain; // a % that stands for itself
      }
    }
    // How the screen of this name shows the picture; asking says that it is there. A picture that comes from a server that has
    // gone without a word never fails: it is asked for again when the server is back, or is another one.
    function frame() {
      var request = new XMLHttpRequest();
      request.onload = function () {
        var view = request.status === 200 ? JSON.parse(request.responseText) : {};
        var fit = view.message ? "contain" : asked("fit") || view.fit;
        var rotate = asked("rotate") || view.rotate;
        document.body.className = "screen" + (fit ? " " + fit : "") + (rotate ? " rotate-" + rotate : "");
        if (request.status !== 200) return request.onerror();
        if (life !== null && life !== view.life) load();
        life = view.life;
      };
      request.onerror = request.ontimeout = function () {
        if (life !== null) life = "lost";
      };
      request.open("GET", "api/screens/" + encodeURIComponent(asked("screen") || "unnamed") + "/view?" + new Date().getTime());
      request.timeout = ASK / 2;
      request.send();
    }
    // The server may have been away for just one of the player's files: such a browser is given them again, ever less often.
    // The count stands in the address, which is never refused.
    function again() {
      var count = Number((/#again-(\d+)/.exec(location.hash) || [0, 0])[1]);
      setTimeout(function reload() {
        var request = new XMLHttpRequest();
        request.onload = function () {
          if (request.status !== 200) return request.onerror();
          location.replace(location.href.split("#")[0] + "#again-" + (count + 1));
          location.reload();
        };
        request.onerror = request.ontimeout = function () {
          setTimeout(reload, ASK);
        };
        request.open("GET", "./?" + new Date().getTime());
        request.timeout = ASK;
        request.send();
      }, Math.min(LONGEST, 60000 * Math.pow(4, count)));
    }
    picture.onerror = function () {
      setTimeout(load, 3000);
    };
    video.parentNode.replaceChild(picture, video);
    load();
    frame();
    setInterval(frame, ASK);
    var began = new Date().getTime();
    var waiting = setInterval(function () {
      word.innerText = "No picture from " + location.host;
      word.hidden = picture.naturalWidth > 0 || new Date().getTime() - began < 60000;
      if (picture.naturalWidth > 0) clearInterval(waiting);
    }, 1000);
    if (modules) again();
  }
  setTimeout(begin, modules ? PATIENCE : 0);
})();
