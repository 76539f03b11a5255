// For browsers that know no modules, or not these, as in old televisions: Motion JPEG, which any of them shows, asked for again
// when it ends. In the JavaScript of their time.
(function () {
  var PATIENCE = 8000; // ms until the player must have begun
  function begin() {
    if (window.player) return;
    var picture = document.createElement("img");
    var video = document.getElementById("video");
    picture.alt = "";
    function load() {
      picture.src = "video.mjpeg?" + new Date().getTime();
    }
    picture.onerror = function () {
      setTimeout(load, 3000);
    };
    video.parentNode.replaceChild(picture, video);
    load();
  }
  setTimeout(begin, "noModule" in document.createElement("script") ? PATIENCE : 0);
})();
