//! Headless Chromium, driven by its DevTools protocol over a pair of pipes: no port, and no other program between.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Process;
use crate::wait::here;

/// One browser with one tab. Dropping it ends the browser.
#[derive(Debug)]
pub struct Browser {
    to: File,
    from: Receiver<Value>,
    sent: u64,
    tab: Option<String>,
    /// What the page did wrong: exceptions, lines of error in the console, what its policy forbade.
    complaints: Vec<String>,
    _process: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts in the namespace, with an empty tab.
    pub fn open(ns: &Namespace) -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("ing-browser-").tempdir()?;
        let (its_in, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (from, its_out) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Above the two numbers that Chromium reads and writes, so that putting them there closes neither.
        let [its_in, its_out] = [above(its_in)?, above(its_out)?];
        let mut command = ns.command("chromium");
        command
            .args(FLAGS)
            .args(DRIVEN)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (inside, outside) = (its_in.as_raw_fd(), its_out.as_raw_fd());
        let place = move || {
            for (fd, number) in [(inside, 3), (outside, 4)] {
                // SAFETY: both are open descriptors of this process; nobody uses 3 and 4 between fork and exec.
                if unsafe { libc::dup2(fd, number) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and touches no lock and no allocator.
        unsafe { command.pre_exec(place) };
        let process = Process::spawn("chromium", &mut command)?;
        drop((its_in, its_out));
        let mut browser = Self {
            to: to.into(),
            from: follow(from.into()),
            sent: 0,
            tab: None,
            complaints: Vec::new(),
            _process: process,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)?;
        browser.tab = Some(session["sessionId"].as_str().context("a session")?.to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// In CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let mobile = width < 600;
        let scale = if mobile { 2 } else { 1 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", metrics).map(drop)
    }

    /// `light` or `dark`, as the visitor's system prefers.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).map(drop)
    }

    pub fn go(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(answer["errorText"].is_null(), "{url}: {answer}");
        Ok(())
    }

    /// The value of an expression, or of its promise.
    pub fn eval(&mut self, expression: &str) -> Result<Value> {
        let wanted = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", wanted)?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true; the error has what the page shows.
    pub fn wait_until(&mut self, what: &str, expression: &str) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < here(PATIENCE) {
            // While a page is being loaded, there may be nobody to ask.
            if self.eval(expression).is_ok_and(|answer| answer == true) {
                return Ok(());
            }
            // The page says when it has drawn again.
            let _ = self.eval("new Promise((done) => setTimeout(done, 50))");
        }
        let shown = self.eval("document.body.innerText").unwrap_or_default();
        bail!("waited {:?} in vain: {what}\n{expression}\n{}\n{shown}", here(PATIENCE), self.complaints.join("\n"))
    }

    /// One key, by its name in the protocol: `Tab`, `Enter`, `/`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            other => (0, Some(other)),
        };
        let mut event = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": code });
        if let Some(text) = text {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event)?;
        let up = json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code });
        self.call("Input.dispatchKeyEvent", up).map(drop)
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// Lets the page's own time pass, as fast as it can: its timers fire, its requests are answered.
    pub fn pass(&mut self, time: Duration) -> Result<()> {
        let budget = json!({ "policy": "pauseIfNetworkFetchesPending", "budget": time.as_millis() as u64 });
        self.call("Emulation.setVirtualTimePolicy", budget)?;
        self.event("Emulation.virtualTimeBudgetExpired")?;
        Ok(())
    }

    /// The whole page, or what of it is `height` pixels high, as a PNG file.
    pub fn screenshot(&mut self, file: &Path) -> Result<()> {
        let size = self.call("Page.getLayoutMetrics", json!({}))?;
        let size = &size["cssContentSize"];
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let wanted = json!({ "format": "png", "clip": clip, "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", wanted)?;
        let data = picture["data"].as_str().context("a picture")?;
        std::fs::write(file, base64(data)?).with_context(|| format!("writing {}", file.display()))
    }

    /// What the page did wrong so far.
    pub fn complaints(&mut self) -> Result<&[String]> {
        // Whatever is on its way comes before the answer.
        self.eval("0")?;
        Ok(&self.complaints)
    }

    /// A command and its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(tab) = &self.tab {
            message["sessionId"] = tab.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).with_context(|| format!("telling Chromium {method}"))?;
        let answer = self.next(method, |message| message["id"] == id)?;
        ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        Ok(answer["result"].clone())
    }

    fn event(&mut self, method: &str) -> Result<Value> {
        self.next(method, |message| message["method"] == method)
    }

    fn next(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + here(PATIENCE);
        loop {
            let message = match self.from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("{what}: Chromium did not answer within {:?}", here(PATIENCE)),
                Err(RecvTimeoutError::Disconnected) => bail!("{what}: Chromium has ended"),
            };
            self.complaints.extend(complaint(&message));
            if wanted(&message) {
                return Ok(message);
            }
        }
    }
}

fn complaint(message: &Value) -> Option<String> {
    let params = &message["params"];
    match message["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => Some(params["entry"].to_string()),
        _ => None,
    }
}

/// Messages end with a zero byte.
fn follow(from: File) -> Receiver<Value> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut message = Vec::new();
        while from.read_until(0, &mut message).is_ok_and(|n| n > 0) {
            message.pop();
            let value = serde_json::from_slice(&message).unwrap_or(Value::Null);
            message.clear();
            if tell.send(value).is_err() {
                return;
            }
        }
    });
    told
}

fn above(fd: OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// RFC 4648, without line breaks.
fn base64(text: &str) -> Result<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let six = ALPHABET.iter().position(|known| *known == byte).context("base64")?;
        bits = bits << 6 | u32::try_from(six)?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff)?);
        }
    }
    Ok(bytes)
}

/// A browser on a busy machine takes its time, above all to start.
const PATIENCE: Duration = Duration::from_secs(40);

/// Without a display, as root, and without a word to its makers.
pub const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];
/// Driven by us, with pictures that look alike everywhere.
const DRIVEN: [&str; 3] = ["--remote-debugging-pipe", "--hide-scrollbars", "--force-color-profile=srgb"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_the_rfc_says() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).ok().as_deref(), Some(bytes.as_bytes()));
        }
        assert!(base64("Zm9v!").is_err());
    }
}
