//! A control plane over HTTP that does as it is told: answers well, badly, slowly, or not at all.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::lab::Host;
use crate::payload::Random;
use crate::wait::{PATIENCE, wait_for};

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this JSON and an ETag made of it; 304 where the question already has it.
    Good(serde_json::Value),
    /// 200 with this text.
    Text(String),
    /// Nothing but this status line, such as `500 Internal Server Error`.
    Status(&'static str),
    /// 302 to somewhere else.
    Redirect(&'static str),
    /// Promises the whole JSON, sends half of it and closes.
    Half(serde_json::Value),
    /// 200 and a megabyte of anything.
    Garbage,
    /// Takes the question and says nothing.
    Silence,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

/// Runs until it is stopped or dropped.
#[derive(Debug)]
pub struct ControlPlane {
    pub address: SocketAddr,
    host: Host,
    state: Arc<State>,
    serving: Option<Serving>,
}

#[derive(Debug)]
struct State {
    answer: Mutex<Answer>,
    questions: Mutex<Vec<Question>>,
}

#[derive(Debug)]
struct Serving {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ControlPlane {
    pub fn start(host: &Host, port: u16, answer: Answer) -> Result<Self> {
        let state = Arc::new(State { answer: Mutex::new(answer), questions: Mutex::default() });
        let mut plane = Self { address: host.socket(port), host: host.clone(), state, serving: None };
        plane.restart()?;
        Ok(plane)
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1/traefik/proxy-config", self.address)
    }

    pub fn answer(&self, answer: Answer) {
        *lock(&self.state.answer) = answer;
    }

    /// All that it was asked so far.
    pub fn questions(&self) -> Vec<Question> {
        lock(&self.state.questions).clone()
    }

    /// Waits until it is asked again, which means that every earlier answer was taken.
    pub fn wait_for_question(&self) -> Result<Question> {
        let before = lock(&self.state.questions).len();
        wait_for(PATIENCE, "the control plane is asked", || lock(&self.state.questions).get(before).cloned())
    }

    /// Dies: its port answers with resets.
    pub fn stop(&mut self) {
        if let Some(Serving { stop, thread }) = self.serving.take() {
            stop.store(true, Ordering::Relaxed);
            // It may have panicked; then the scenario fails for want of an answer.
            let _ = thread.join();
        }
    }

    /// Comes back after [`ControlPlane::stop`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let listener = self.host.ns.listen(self.address)?;
        listener.set_nonblocking(true)?;
        let (stop, state) = (Arc::new(AtomicBool::new(false)), self.state.clone());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (state, stopped) = (state.clone(), stopped.clone());
                        std::thread::spawn(move || serve(stream, &state, &stopped));
                    }
                    Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
                }
            }
        });
        self.serving = Some(Serving { stop, thread });
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Question {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// One question, one answer; whoever asks may leave at any moment.
fn serve(mut stream: TcpStream, state: &State, stopped: &AtomicBool) {
    let Ok(question) = read(&stream) else { return };
    let answer = lock(&state.answer).clone();
    let known = question.header("if-none-match").map(str::to_owned);
    lock(&state.questions).push(question);
    let send = |stream: &mut TcpStream, head: &str, body: &[u8]| {
        stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes())?;
        stream.write_all(body)
    };
    let length = |body: &str| format!("200 OK\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let sent = match answer {
        Answer::Good(json) => {
            let body = json.to_string();
            let etag =
                format!("\"{:x}\"", body.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte)));
            match known == Some(etag.clone()) {
                true => send(&mut stream, &format!("304 Not Modified\r\nETag: {etag}"), b""),
                false => send(&mut stream, &format!("{}\r\nETag: {etag}", length(&body)), body.as_bytes()),
            }
        }
        Answer::Text(text) => send(&mut stream, &length(&text), text.as_bytes()),
        Answer::Status(line) => send(&mut stream, &format!("{line}\r\nContent-Length: 0"), b""),
        Answer::Redirect(to) => send(&mut stream, &format!("302 Found\r\nLocation: {to}\r\nContent-Length: 0"), b""),
        Answer::Half(json) => {
            let body = json.to_string();
            send(&mut stream, &length(&body), &body.as_bytes()[..body.len() / 2])
        }
        Answer::Garbage => {
            let mut bytes = vec![0; 1 << 20];
            Random::new(7).fill(&mut bytes);
            send(&mut stream, "200 OK\r\nContent-Length: 1048576", &bytes)
        }
        Answer::Silence => wait_for_its_end(&mut stream, stopped),
    };
    // A client that left early is part of the play.
    drop(sent);
}

fn read(stream: &TcpStream) -> std::io::Result<Question> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Question { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), headers })
}

fn wait_for_its_end(stream: &mut TcpStream, stopped: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    while !stopped.load(Ordering::Relaxed) {
        if matches!(stream.read(&mut [0]), Ok(0)) {
            break;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
