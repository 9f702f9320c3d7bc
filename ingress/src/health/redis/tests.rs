use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::super::fixture::{ClosedPort, Server, health};
use super::super::tls::TlsClients;
use super::*;
use crate::balance::{Pool, fixture};
use crate::config::{
    BackendAddress, BackendConfig, PoolConfig, ProxyProtocol, RedisLogin, RedisProbe, RedisRole, SentinelConfig,
};
use crate::events::{EventKind, Events, Item};
use crate::flow::FlowCommand;
use crate::route::PoolName;

const PRIMARY: &str = "*3\r\n$6\r\nmaster\r\n:7\r\n*0\r\n+PONG\r\n";
const REPLICA: &str = "*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:7\r\n+PONG\r\n";

fn redis(role: RedisRole) -> RedisProbe {
    RedisProbe { role, login: RedisLogin::default(), tls: None, sentinel: None }
}

fn probe(redis: RedisProbe, address: SocketAddr, timeout: Duration) -> Probe {
    let config = HealthConfig { timeout, ..health(ProbeConfig::Redis(redis)) };
    Probe::new(&config, ProxyProtocol::None, &BackendAddress::Socket(address), TlsClients::new())
}

/// What a probe makes of a server that answers everything with these bytes and closes.
async fn verdict(redis: RedisProbe, answer: impl Into<Vec<u8>>) -> Result<(), String> {
    let answer: Vec<u8> = answer.into();
    let server = Server::start(move |mut stream: TcpStream| {
        let answer = answer.clone();
        async move {
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    let verdict = probe(redis, server.address, Duration::from_secs(5)).run(server.address).await;
    verdict.map(drop).map_err(|error| error.to_string().replace(&server.address.to_string(), "ADDRESS"))
}

#[tokio::test]
async fn servers_that_are_of_no_use_say_why() {
    let cases: [(&[u8], &str); 9] = [
        (
            b"-NOAUTH Authentication required.\r\n-NOAUTH x\r\n",
            "Redis at ADDRESS: it asks for a password; write `password_file` under `health.redis`",
        ),
        (
            b"*3\r\n$6\r\nmaster\r\n:7\r\n*0\r\n-LOADING Redis is loading the dataset in memory\r\n",
            "Redis at ADDRESS: it is loading its data",
        ),
        (b"-BUSY Redis is busy running a script.\r\n-BUSY x\r\n", "Redis at ADDRESS: it is busy with a script"),
        (
            b"-DENIED Redis is running in protected mode\r\n",
            "Redis at ADDRESS: it is in protected mode: it takes no commands from other hosts without a password",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "ADDRESS does not speak Redis' protocol: it says \"HTTP/1.1 400 Bad Request....\"",
        ),
        (
            b"\x15\x03\x01\x00\x02\x02\x46",
            "ADDRESS does not speak Redis' protocol: it wants TLS; write `tls: {}` under `health.redis`",
        ),
        (b"", "Redis at ADDRESS closed the connection without an answer; does it want TLS, or none?"),
        (b"*3\r\n$6\r\nmas", "Redis at ADDRESS closed the connection without an answer; does it want TLS, or none?"),
        (
            b"*2\r\n$8\r\nsentinel\r\n*0\r\n+PONG\r\n",
            "Redis at ADDRESS: it is a Sentinel; Sentinels stand under `health.redis.sentinel`",
        ),
    ];
    for (answer, expected) in cases {
        assert_eq!(verdict(redis(RedisRole::Any), answer).await, Err(expected.to_owned()));
    }
    let endless = format!("*2\r\n${}\r\n", resp::MAX_REPLY).into_bytes();
    let endless = [endless, vec![b'x'; 10 * resp::MAX_REPLY]].concat();
    let refused = verdict(redis(RedisRole::Any), endless).await.expect_err("too much");
    assert!(refused.starts_with("ADDRESS does not speak Redis' protocol"), "{refused}");
}

#[tokio::test]
async fn each_role_is_good_for_those_who_want_it() {
    let is = |role, answer: &'static str| async move { verdict(redis(role), answer).await };
    assert_eq!(is(RedisRole::Any, PRIMARY).await, Ok(()));
    assert_eq!(is(RedisRole::Any, REPLICA).await, Ok(()));
    assert_eq!(is(RedisRole::Replica, REPLICA).await, Ok(()));
    assert_eq!(is(RedisRole::Replica, PRIMARY).await, Err("Redis at ADDRESS is a primary; wanted is replica".into()));
    let behind = REPLICA.replace("$9\r\nconnected", "$4\r\nsync");
    let refused = verdict(redis(RedisRole::Replica), behind).await;
    assert_eq!(refused, Err("Redis at ADDRESS is a replica of 10.0.0.1:6379 (sync); wanted is replica".into()));
}

#[tokio::test]
async fn a_server_that_hangs_fails_in_time() {
    let server = Server::sink().await;
    let error = probe(redis(RedisRole::Any), server.address, Duration::from_millis(50)).run(server.address).await;
    let expected = format!("asking Redis at {}: no answer within 50ms", server.address);
    assert_eq!(error.map_err(|error| error.to_string()), Err(expected));
}

#[tokio::test]
async fn a_password_is_sent_and_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("password");
    let write = |mode| {
        std::fs::write(&file, "hunter2\n").expect("a file");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("its mode");
    };
    write(0o600);
    let login = RedisLogin { username: Some("checks".into()), password_file: Some(file.clone()) };
    let redis = RedisProbe { login, ..redis(RedisRole::Any) };
    let echo =
        "-ERR unknown command 'AUTH', with args beginning with: 'checks' 'hunter2'\r\n-NOAUTH x\r\n-NOAUTH x\r\n";
    let refused = verdict(redis.clone(), echo).await.expect_err("no login");
    assert_eq!(refused, "Redis at ADDRESS: it does not accept the user and password of `health.redis`");
    assert_eq!(verdict(redis.clone(), format!("+OK\r\n{PRIMARY}")).await, Ok(()));
    write(0o644);
    let refused = verdict(redis, format!("+OK\r\n{PRIMARY}")).await.expect_err("everybody can read it");
    assert!(refused.contains("can be read by everybody") && !refused.contains("hunter2"), "{refused}");
}

/// A server that says what it is told to say; `None`: it hangs.
#[derive(Clone)]
struct Scripted {
    address: SocketAddr,
    says: Arc<Mutex<Option<String>>>,
}

impl Scripted {
    async fn start(says: &str) -> Self {
        let says = Arc::new(Mutex::new(Some(says.to_owned())));
        let script = says.clone();
        let server = Server::start(move |mut stream: TcpStream| {
            let script = script.clone();
            async move {
                let _ = stream.read(&mut [0; 512]).await;
                let says = script.lock().clone();
                match says {
                    Some(says) => drop(stream.write_all(says.as_bytes()).await),
                    None => drop(stream.read(&mut [0; 512]).await),
                }
            }
        })
        .await;
        Self { address: server.address, says }
    }

    fn say(&self, says: &str) {
        *self.says.lock() = Some(says.to_owned());
    }
}

/// Whose connections, why, and who was followed at that moment.
type Cut = (String, EndReason, Option<String>);

/// A pool whose primary is followed, and all that was cut.
struct Lab {
    pool: Pool,
    cuts: Arc<Mutex<Vec<Cut>>>,
    heard: tokio::sync::broadcast::Receiver<Arc<crate::events::Event>>,
    task: tokio_util::task::AbortOnDropHandle<()>,
}

fn lab(addresses: &[SocketAddr], sentinel: Option<SentinelConfig>) -> Lab {
    let backends = addresses.iter().enumerate().map(|(n, address)| BackendConfig {
        name: format!("b{n}"),
        address: BackendAddress::Socket(*address),
        weight: 1,
    });
    let probe = RedisProbe { sentinel, ..redis(RedisRole::Primary) };
    let check = HealthConfig { timeout: Duration::from_millis(500), ..health(ProbeConfig::Redis(probe)) };
    let config = PoolConfig { health: Some(check.clone()), ..fixture::pool_config(backends, []) };
    let pool = Pool::new(PoolName::new("redis"), config, None);
    let (commands, mut orders) = mpsc::channel(1);
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let (told, primary) = (cuts.clone(), pool.primary.clone().expect("it follows one"));
    let (backends, seen) = (pool.backends.clone(), primary.clone());
    tokio::spawn(async move {
        while let Some(FlowCommand::Cut { filter, reason, done }) = orders.recv().await {
            let backend = filter.backend.unwrap_or_default();
            let followed = seen.followed().map(|backend| backend.name.clone());
            backends.iter().filter(|b| b.name == backend).for_each(|b| b.connection_ended(0, 0));
            told.lock().push((backend, reason, followed));
            let _ = done.map(|done| done.send(1));
        }
    });
    let slots = Arc::new(tokio::sync::Semaphore::new(8));
    let events = Events::new();
    let heard = events.listen();
    let shared = Shared { commands, events, slots, tls: TlsClients::new() };
    let plan = Plan { health: check, proxy: ProxyProtocol::None, on_down: OnDown::Keep };
    let task = tokio::spawn(run(pool.backends.clone(), primary, plan, shared));
    Lab { pool, cuts, heard, task: tokio_util::task::AbortOnDropHandle::new(task) }
}

impl Lab {
    fn taking(&self) -> Option<String> {
        let client = std::net::Ipv4Addr::LOCALHOST.into();
        self.pool.pick(client, &[], std::time::Instant::now()).map(|pick| pick.backend.name.clone())
    }

    async fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let view = || self.pool.view(std::time::Instant::now()).primary;
        assert!(clock::comes_true(async || condition(self)).await, "still waiting for: {what}; {:?}", view());
    }

    async fn next_event(&mut self) -> (EventKind, String) {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
        let event = heard.expect("an event in time").expect("somebody tells");
        match &event.items[..] {
            [Item::Backend { backend, .. }] => (event.kind, backend.clone()),
            other => panic!("about one backend: {other:?}"),
        }
    }

    fn problem(&self) -> Option<String> {
        self.pool.view(std::time::Instant::now()).primary.and_then(|primary| primary.problem)
    }
}

#[tokio::test]
async fn a_demotion_empties_the_place_cuts_and_then_fills_it_again() {
    let (a, b) = (Scripted::start(PRIMARY).await, Scripted::start(REPLICA).await);
    let lab = lab(&[a.address, b.address], None);
    assert_eq!(lab.taking(), None, "nobody takes connections before anybody was asked");
    lab.wait("the primary is found", |lab| lab.taking().as_deref() == Some("b0")).await;
    lab.wait("the replica stands by", |lab| lab.pool.backends[1].health().state == HealthState::Standby).await;
    lab.pool.backends[0].connection_started();
    a.say(REPLICA);
    b.say(PRIMARY);
    lab.wait("the new primary is found", |lab| lab.taking().as_deref() == Some("b1")).await;
    assert_eq!(
        lab.cuts.lock().first(),
        Some(&("b0".to_owned(), EndReason::Demoted, None)),
        "cut while nobody is followed"
    );
    // One that was on its way.
    lab.pool.backends[0].connection_started();
    lab.wait("it is cut too", |lab| lab.pool.backends[0].in_flight() == 0).await;
    assert!(!lab.task.is_finished());
}

#[tokio::test]
async fn of_two_that_say_so_one_is_followed_and_the_other_is_named() {
    let (a, b) = (Scripted::start(PRIMARY).await, Scripted::start(REPLICA).await);
    let mut lab = lab(&[a.address, b.address], None);
    lab.wait("the primary is found", |lab| lab.taking().as_deref() == Some("b0")).await;
    b.say(PRIMARY);
    lab.wait("the rival is seen", |lab| lab.problem().is_some()).await;
    assert_eq!(lab.problem().as_deref(), Some("b1 too: says that it is the primary; b0 stays"));
    assert_eq!((lab.taking().as_deref(), lab.pool.backends[1].health().state), (Some("b0"), HealthState::Down));
    *a.says.lock() = None;
    lab.wait("the other takes over, once the first is lost", |lab| lab.taking().as_deref() == Some("b1")).await;
    assert_eq!(*lab.cuts.lock(), [], "on_down: keep, and nothing was there");
    assert_eq!(lab.next_event().await, (EventKind::BackendDown, "b0".to_owned()), "the rival is no news");
    a.say(REPLICA);
    assert_eq!(lab.next_event().await, (EventKind::BackendUp, "b0".to_owned()), "it is back as a replica");
}

#[tokio::test]
async fn sentinels_have_the_last_word_as_long_as_most_of_them_agree() {
    let (a, b) = (Scripted::start(PRIMARY).await, Scripted::start(PRIMARY).await);
    let names = |server: &Scripted| {
        let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
        format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len())
    };
    let sentinels = [Scripted::start(&names(&b)).await, Scripted::start("*-1\r\n").await];
    let dead = ClosedPort::new();
    let addresses = [sentinels[0].address, sentinels[1].address, dead.address].map(BackendAddress::Socket).to_vec();
    let sentinel = SentinelConfig { addresses, service: "main".into(), login: RedisLogin::default() };
    let lab = lab(&[a.address, b.address], Some(sentinel));
    let silence = "b0, b1: says that it is the primary, and no majority of the Sentinels does";
    lab.wait("one of three is no majority", |lab| lab.problem().as_deref() == Some(silence)).await;
    assert_eq!(lab.taking(), None);
    sentinels[1].say(&names(&b));
    lab.wait("two of three are one", |lab| lab.taking().as_deref() == Some("b1")).await;
    sentinels[0].say("*-1\r\n");
    let view = |lab: &Lab| lab.pool.view(std::time::Instant::now()).primary.and_then(|primary| primary.sentinels);
    lab.wait("they disagree again", |lab| view(lab).is_some_and(|view| view.agreed == 1)).await;
    assert_eq!(lab.taking().as_deref(), Some("b1"), "who is followed stays");
    sentinels.iter().for_each(|sentinel| sentinel.say(&names(&a)));
    lab.wait("their new word counts", |lab| lab.taking().as_deref() == Some("b0")).await;
}
