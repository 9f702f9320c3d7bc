//! `handoff: when_idle`: a connection is relayed until neither end has said anything for a while, and goes to the kernel then,
//! whatever has been said before and whoever began.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use ingress_tests::backend::Backend;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::payload::{Random, fingerprint};
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Scripted, check_random, send_random};
use ingress_tests::talk::{Talk, accept};
use ingress_tests::wait::{PATIENCE, amount_here, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending, proxy_v2, read_exactly};
use serde_json::{Value, json};
use socket2::SockRef;

#[test]
fn server_that_speaks_first_goes_to_the_kernel_once_it_is_quiet() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let backend = host.ns.listen(host.socket(443))?;
    let mut node = s1.node_with(plain(&s1, "100ms"))?;
    let client = s1.lab.clients[0].ns.connect(s1.lab.public(6379))?;
    let mut talk = Talk::of(client, accept(&backend)?);
    talk.backend_says(b"220 at your service\r\n")?;
    talk.exchange()?;
    let flow = spliced(&node)?;
    ensure!(flow["bytes_to_client"] == 300_022 && flow["bytes_to_backend"] == 300_001, "so far: {flow}");
    talk.exchange()?;

    node.kill9()?;
    talk.exchange()?;
    node.launch()?;
    talk.exchange()?;
    let carried = talk.finish()?;
    let end = node.wait_for_log("its end", |line| line["message"] == "connection ended")?;
    assert_eq!(end["mode"], "kernel", "{end}");
    assert_eq!(
        (&end["bytes_to_backend"], &end["bytes_to_client"]),
        (&json!(carried.to_backend), &json!(carried.to_client)),
        "{end}"
    );
    Ok(())
}

#[test]
fn both_ends_of_a_quiet_connection_see_the_others_reset_and_end() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { ipv6: true, ..LabOptions::default() })?;
    let host = &s1.lab.backends[0];
    let backend = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(tls(&s1, "50ms"))?;
    let hello = client_hello(Some(NAME))?;
    let begin = || -> Result<(TcpStream, TcpStream)> {
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.write_all(&hello)?;
        let mut server = accept(&backend)?;
        read_exactly(&mut server, proxy_v2(client.local_addr()?, s1.public()).len() + hello.len())?;
        server.write_all(b"welcome")?;
        read_exactly(&mut client, 7)?;
        spliced(&node)?;
        Ok((client, server))
    };
    let over = || wait_until(PATIENCE, "no connection is left", || node.flows().is_ok_and(|flows| flows.is_empty()));

    let (client, mut server) = begin()?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    assert_eq!(ending(&mut server, PATIENCE)?, Ending::Reset);
    over()?;
    let (mut client, server) = begin()?;
    SockRef::from(&server).set_linger(Some(Duration::ZERO))?;
    drop(server);
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
    over()?;
    let (client, server) = begin()?;
    Talk::of(client, server).finish()?;
    over()?;
    let (mut client, mut server) = begin()?;
    assert_eq!(node.json(&["flows", "kill", "--all"])?["killed"], 1);
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
    assert_eq!(ending(&mut server, PATIENCE)?, Ending::Reset);

    let counted = &node.status()?["connections"];
    assert_eq!((&counted["handed_off_total"], &counted["handed_off_later_total"]), (&json!(4), &json!(4)), "{counted}");
    assert_eq!(counted["relay_reasons"], json!({ "when_idle": 4 }), "{counted}");
    Ok(())
}

#[test]
fn ends_that_speak_at_the_moment_of_the_handoff_lose_nothing() -> Result<()> {
    require!();
    let connections = std::env::var("INGRESS_CONNECTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let s1 = S1::without_backends(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let _backend = Scripted::start(&s1.lab.backends[0], |stream| {
        // Both ends choose their instants by themselves.
        let seed = u64::from(stream.peer_addr()?.port());
        speak_and_listen(&stream, seed, DOWN, UP).map_err(std::io::Error::other)
    })?;
    let node = s1.node_with(tls(&s1, "5ms"))?;
    let hello = client_hello(Some(NAME))?;
    let next = AtomicU64::new(0);
    let one = |n| -> Result<()> {
        let mut stream = TcpStream::connect(s1.public())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&hello)?;
        speak_and_listen(&stream, n, UP, DOWN).with_context(|| format!("connection {n}"))
    };
    let run = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::AcqRel);
            if n >= connections {
                return Ok(());
            }
            one(n)?;
        }
    };
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..CROWD).map(|_| scope.spawn(|| s1.lab.clients[0].ns.exec(run))).collect();
        crowd.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let counted = node.status()?["connections"].clone();
    let later = counted["handed_off_later_total"].as_u64().unwrap_or(0);
    eprintln!("{later} of {connections} handed off; {} packets came in the middle of it", node.verdict("drop_moving")?);
    ensure!(later > connections / 2, "{counted}");
    wait_until(PATIENCE, "no connection is left", || node.flows().is_ok_and(|flows| flows.is_empty()))?;
    let ended = |line: &Value| line["message"] == "connection ended";
    wait_until(PATIENCE, "each has its log line", || {
        node.log().lines().iter().filter(|line| ended(line)).count() as u64 == connections
    })?;
    for line in node.log().lines().iter().filter(|line| ended(line)) {
        let carried = (&line["bytes_to_backend"], &line["bytes_to_client"]);
        assert_eq!(carried, (&json!(UP + hello.len() as u64), &json!(DOWN)), "{line}");
        assert_eq!(line["end_reason"], "closed", "{line}");
    }
    Ok(())
}

#[test]
fn mariadb_session_goes_to_the_kernel_between_two_questions() -> Result<()> {
    require!("mariadbd", "mariadb");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let backend = Backend::mariadb("database", &s1.lab.backends[0])?;
    let mut config = plain(&s1, "200ms");
    config["pools"]["web"]["backends"] = json!([backend.host.socket(backend.port).to_string()]);
    let mut node = s1.node_with(config)?;

    let mut command = s1.lab.clients[0].ns.command("mariadb");
    let to = s1.lab.public(6379);
    command.args(["--no-defaults", "--batch", "--unbuffered", "--skip-column-names", "--skip-reconnect"]);
    command.args(["--host", &to.ip().to_string(), "--port", &to.port().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = Process::spawn("mariadb", &mut command)?;
    let mut questions = session.child().stdin.take().context("mariadb has a stdin")?;
    let mut answers = BufReader::new(session.child().stdout.take().context("mariadb has a stdout")?);
    let mut ask = |question: &str| -> Result<String> {
        questions.write_all(question.as_bytes())?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    };
    let id = ask("SELECT CONNECTION_ID();\n")?;
    ensure!(id.parse::<u64>().is_ok(), "the session's number: {id:?}");
    spliced(&node)?;
    let bytes = amount_here(2_000_000) as usize;
    let text: String = "a mouse took a stroll ".chars().cycle().take(bytes).collect();
    let sha256: String = fingerprint(text.as_bytes())?.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(ask(&format!("SELECT SHA2('{text}', 256);\n"))?, sha256, "an upload");
    ensure!(ask(&format!("SELECT REPEAT('cheese', {bytes});\n"))? == "cheese".repeat(bytes), "a download");
    node.kill9()?;
    assert_eq!(ask("SELECT CONNECTION_ID();\n")?, id, "without a daemon");
    node.launch()?;
    assert_eq!(ask("SELECT CONNECTION_ID();\n")?, id, "with the next one");
    assert_eq!(node.status()?["kernel"]["adopted"], 1);
    Ok(())
}

/// The pool `web` behind an address that speaks plain TCP; the backend gets what the client says and nothing else.
fn plain(s1: &S1, after: &str) -> Value {
    let mut config = tls(s1, after);
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    let bind = s1.lab.public(6379).to_string();
    config["listeners"]["plain"] = json!({ "bind": [bind], "protocol": "tcp", "pool": "web" });
    config
}

fn tls(s1: &S1, after: &str) -> Value {
    let mut config = s1.config_without_checks();
    config["pools"]["web"]["handoff"] = json!({ "when_idle": after });
    config
}

fn spliced(node: &Node) -> Result<Value> {
    node.wait_for_flow("it is in the kernel", |flow| flow["state"] == "spliced")
}

/// Says `say` bytes with pauses of all lengths around the pool's, while it hears `hear` bytes; then closes, and so must the
/// other end.
fn speak_and_listen(stream: &TcpStream, seed: u64, say: u64, hear: u64) -> Result<()> {
    let (mut writer, mut reader) = (stream, stream);
    std::thread::scope(|scope| -> Result<()> {
        let speaking = scope.spawn(move || -> std::io::Result<()> {
            let mut said = Vec::new();
            send_random(&mut said, say, say)?;
            let mut random = Random::new(seed);
            let mut rest = said.as_slice();
            while !rest.is_empty() {
                std::thread::sleep(Duration::from_micros(random.next_u64() % 12_000));
                let (now, later) = rest.split_at(rest.len().min(1 + (random.next_u64() % 4_000) as usize));
                writer.write_all(now)?;
                rest = later;
            }
            Ok(())
        });
        check_random(&mut reader, hear, hear)?;
        speaking.join().map_err(|_| anyhow!("a speaker panicked"))?.context("speaking")
    })?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(reader.read(&mut [0])? == 0, "more than was said");
    Ok(())
}

/// Bytes of each direction.
const UP: u64 = 17_000;
const DOWN: u64 = 23_000;
/// Connections at a time.
const CROWD: u64 = 24;
/// The name that leads to the pool `web`.
const NAME: &str = "fiscalismia.com";
