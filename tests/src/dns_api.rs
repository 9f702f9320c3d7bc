//! DNS providers as their documentation describes them: they take what stands there, note every other request as a fault,
//! and have bad days on demand.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::lab::Host;
use crate::wait::PATIENCE;

pub const TOKEN: &str = "0123456789-not-a-real-token";
pub const ZONE: &str = "example.com";
pub const ZONE_ID: &str = "023e105f4ecef8ad9ca31a8372d0c353";

/// Whose API it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cloudflare,
    Hetzner,
    HttpNet,
}

/// How it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    Good,
    /// This status line, and further header lines.
    Status(&'static str, &'static str),
    /// Promises a whole answer, sends half of it and closes.
    Half,
}

/// A record in its zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub id: String,
    pub name: String,
    pub kind: String,
    pub content: String,
    pub ttl: u64,
    pub proxied: bool,
    pub comment: String,
}

/// A request that was understood: its method and path.
pub type Call = String;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct DnsApi {
    pub flavour: Flavour,
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    entries: Vec<Entry>,
    calls: Vec<Call>,
    faults: Vec<String>,
    made: u32,
}

struct Question {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Value,
}

type Answer = (&'static str, Value);

impl DnsApi {
    pub fn start(host: &Host, port: u16, flavour: Flavour) -> Result<Self> {
        let address = host.socket(port);
        let listener = host.ns.listen(address)?;
        listener.set_nonblocking(true)?;
        let state = State { mood: Mood::Good, entries: vec![], calls: vec![], faults: vec![], made: 0 };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that leaves early is part of the play.
                    Ok((stream, _)) => drop(serve(stream, flavour, &shared)),
                    Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { flavour, address, state, stop, thread: Some(thread) })
    }

    pub fn base_url(&self) -> String {
        let path = match self.flavour {
            Flavour::Cloudflare => "/client/v4",
            Flavour::Hetzner => "/v1",
            Flavour::HttpNet => "/api/dns/v1/json",
        };
        format!("http://{}{path}", self.address)
    }

    /// What the configuration says of the zone.
    pub fn zone(&self, names: &[&str], token_file: &std::path::Path) -> Value {
        let mut zone = json!({ "base_url": self.base_url(), "names": names, "token_file": token_file });
        zone["provider"] = match self.flavour {
            Flavour::Cloudflare => {
                zone["zone_id"] = ZONE_ID.into();
                "cloudflare"
            }
            Flavour::Hetzner => "hetzner",
            Flavour::HttpNet => "http_net",
        }
        .into();
        zone
    }

    pub fn mood(&self, mood: Mood) {
        lock(&self.state).mood = mood;
    }

    pub fn put(&self, name: &str, kind: &str, content: &str) {
        let mut state = lock(&self.state);
        let id = state.next_id();
        let (name, kind, content) = (name.to_owned(), kind.to_owned(), content.to_owned());
        state.entries.push(Entry { id, name, kind, content, ttl: 86_000, proxied: true, comment: "by hand".into() });
    }

    pub fn change(&self, name: &str, content: &str) {
        let mut state = lock(&self.state);
        state
            .entries
            .iter_mut()
            .filter(|entry| entry.name == name)
            .for_each(|entry| entry.content = content.to_owned());
    }

    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.state).entries.clone()
    }

    pub fn content(&self, name: &str, kind: &str) -> Vec<String> {
        let is = |entry: &&Entry| entry.name == name && entry.kind == kind;
        self.entries().iter().filter(is).map(|entry| entry.content.clone()).collect()
    }

    /// All that it was asked, whatever the mood.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Requests that its documentation does not know.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.state).faults.clone()
    }
}

impl Drop for DnsApi {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It may have panicked; then the scenario fails for want of an answer.
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, flavour: Flavour, state: &Mutex<State>) -> std::io::Result<()> {
    let question = read(&stream)?;
    let (status, more, body, half) = {
        let mut state = lock(state);
        let Question { method, path, .. } = &question;
        state.calls.push(format!("{method} {path}"));
        match state.mood.clone() {
            Mood::Status(status, more) => (status, more, Value::Null, false),
            mood @ (Mood::Good | Mood::Half) => {
                let (status, body) = state.answer(flavour, &question);
                (status, "", body, mood == Mood::Half)
            }
        }
    };
    let text = if body.is_null() { "oops".to_owned() } else { body.to_string() };
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n", text.len());
    stream.write_all(head.as_bytes())?;
    let end = if half { text.len() / 2 } else { text.len() };
    stream.write_all(&text.as_bytes()[..end])
}

fn read(stream: &TcpStream) -> std::io::Result<Question> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    while let Some((name, value)) = line()?.split_once(':') {
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Question { method, path, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

impl State {
    fn next_id(&mut self) -> String {
        self.made += 1;
        format!("1501010000{:04}", self.made)
    }

    fn answer(&mut self, flavour: Flavour, question: &Question) -> Answer {
        let bearer = |(name, value): &(String, String)| name == "authorization" && *value == format!("Bearer {TOKEN}");
        let known = match flavour {
            Flavour::Cloudflare | Flavour::Hetzner => question.headers.iter().any(bearer),
            Flavour::HttpNet => question.body["authToken"] == TOKEN,
        };
        let has_type =
            question.headers.iter().any(|(name, value)| name == "content-type" && value == "application/json");
        let answer = match flavour {
            _ if !known => None,
            _ if question.method != "GET" && !has_type => None,
            Flavour::Cloudflare => self.cloudflare(question),
            Flavour::Hetzner => self.hetzner(question),
            Flavour::HttpNet => self.http_net(question),
        };
        answer.unwrap_or_else(|| {
            let Question { method, path, body, .. } = question;
            self.faults.push(format!("{method} {path} {body}"));
            ("400 Bad Request", json!({ "success": false, "errors": [{ "code": 1, "message": "not documented" }] }))
        })
    }

    fn cloudflare(&mut self, question: &Question) -> Option<Answer> {
        let rest = question.path.strip_prefix(&format!("/client/v4/zones/{ZONE_ID}/dns_records"))?;
        let good = |result: Value| {
            let info = json!({ "total_count": result.as_array().map_or(1, Vec::len) });
            ("200 OK", json!({ "success": true, "errors": [], "messages": [], "result": result, "result_info": info }))
        };
        let shown = |e: &Entry| {
            json!({ "id": e.id, "name": e.name, "type": e.kind, "content": e.content, "ttl": e.ttl, "proxied": e.proxied,
                "comment": e.comment })
        };
        match question.method.as_str() {
            "GET" => {
                let query = rest.strip_prefix("?type=")?.strip_suffix("&per_page=100")?;
                let (kind, name) = query.split_once("&name.exact=")?;
                let found = self.entries.iter().filter(|entry| entry.name == name && entry.kind == kind);
                Some(good(found.map(shown).collect()))
            }
            "POST" if rest.is_empty() => {
                let mut entry = entry(self.next_id(), &question.body, "content")?;
                entry.proxied = question.body["proxied"].as_bool()?;
                self.entries.push(entry.clone());
                Some(good(shown(&entry)))
            }
            "PATCH" => {
                let id = rest.strip_prefix('/')?;
                let entry = self.entries.iter_mut().find(|entry| entry.id == id)?;
                let body = &question.body;
                (body["name"] == entry.name.as_str() && body["type"] == entry.kind.as_str()).then_some(())?;
                entry.content = body["content"].as_str()?.to_owned();
                entry.ttl = body["ttl"].as_u64()?;
                entry.proxied = body["proxied"].as_bool()?;
                Some(good(shown(entry)))
            }
            _ => None,
        }
    }

    fn hetzner(&mut self, question: &Question) -> Option<Answer> {
        let rest = question.path.strip_prefix(&format!("/v1/zones/{ZONE}/rrsets"))?;
        let whole = |name: &str| if name == "@" { ZONE.to_owned() } else { format!("{name}.{ZONE}") };
        let done = || Some(("201 Created", json!({ "action": { "id": 1, "status": "running", "error": null } })));
        let words: Vec<_> = rest.trim_start_matches('/').split('/').collect();
        match (question.method.as_str(), words.as_slice()) {
            ("GET", [name, kind]) => {
                let found: Vec<_> =
                    self.entries.iter().filter(|entry| entry.name == whole(name) && entry.kind == *kind).collect();
                if found.is_empty() {
                    return Some((
                        "404 Not Found",
                        json!({ "error": { "code": "not_found", "message": "not found" } }),
                    ));
                }
                let records: Vec<_> =
                    found.iter().map(|e| json!({ "value": e.content, "comment": e.comment })).collect();
                Some((
                    "200 OK",
                    json!({ "rrset": { "name": name, "type": kind, "ttl": found[0].ttl, "records": records } }),
                ))
            }
            ("POST", [""]) => {
                let mut body = question.body.clone();
                body["name"] = whole(body["name"].as_str()?).into();
                body["content"] = body["records"][0]["value"].clone();
                let entry = entry(self.next_id(), &body, "content")?;
                self.entries.push(entry);
                done()
            }
            ("POST", [name, kind, "actions", "set_records"]) => {
                let ttl = self.entries.iter().find(|e| e.name == whole(name) && e.kind == *kind)?.ttl;
                self.entries.retain(|entry| entry.name != whole(name) || entry.kind != *kind);
                for record in question.body["records"].as_array()? {
                    let (id, proxied) = (self.next_id(), true);
                    let (name, kind) = (whole(name), (*kind).to_owned());
                    let (content, comment) =
                        (record["value"].as_str()?.to_owned(), record["comment"].as_str()?.to_owned());
                    self.entries.push(Entry { id, name, kind, content, ttl, proxied, comment });
                }
                done()
            }
            _ => None,
        }
    }

    fn http_net(&mut self, question: &Question) -> Option<Answer> {
        let body = &question.body;
        (question.method == "POST").then_some(())?;
        let good = |response: Value| {
            Some(("200 OK", json!({ "status": "success", "errors": [], "warnings": [], "response": response })))
        };
        match question.path.strip_prefix("/api/dns/v1/json/")? {
            "recordsFind" => {
                let filter = &body["filter"];
                (filter["subFilterConnective"] == "AND").then_some(())?;
                let [name, kind] = [0, 1].map(|n| filter["subFilter"][n]["value"].as_str());
                let found =
                    self.entries.iter().filter(|e| Some(e.name.as_str()) == name && Some(e.kind.as_str()) == kind);
                let shown = |e: &Entry| {
                    json!({ "id": e.id, "name": e.name, "type": e.kind, "content": e.content, "ttl": e.ttl,
                        "comments": e.comment, "priority": null })
                };
                let data: Vec<_> = found.map(shown).collect();
                good(json!({ "totalEntries": data.len(), "data": data, "limit": 100, "page": 1 }))
            }
            "recordsUpdate" => {
                (body["zoneName"] == ZONE && body["recordsToDelete"] == json!([])).then_some(())?;
                for record in body["recordsToAdd"].as_array()? {
                    let entry = entry(self.next_id(), record, "content")?;
                    self.entries.push(entry);
                }
                for record in body["recordsToModify"].as_array()? {
                    let entry = self.entries.iter_mut().find(|entry| record["id"] == entry.id.as_str())?;
                    entry.content = record["content"].as_str()?.to_owned();
                    entry.ttl = record["ttl"].as_u64()?;
                    entry.comment = record["comments"].as_str().unwrap_or_default().to_owned();
                }
                good(json!({ "records": [] }))
            }
            _ => None,
        }
    }
}

fn entry(id: String, body: &Value, content: &str) -> Option<Entry> {
    let text = |key: &str| Some(body[key].as_str()?.to_owned());
    let (name, kind, content) = (text("name")?, text("type")?, text(content)?);
    Some(Entry { id, name, kind, content, ttl: body["ttl"].as_u64()?, proxied: false, comment: String::new() })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
