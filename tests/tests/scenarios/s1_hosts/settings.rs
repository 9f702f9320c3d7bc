//! Settings of the network stack: the strict ones work, and all are left as they were found.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::netns::Namespace;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wire::client_hello;

#[test]
fn strict_settings_change_nothing_and_nothing_is_logged() -> Result<()> {
    require!();
    for strictness in ["1", "2"] {
        let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
        let proxy = &s1.lab.proxy.ns;
        for (key, value) in [
            ("rp_filter", strictness),
            ("arp_filter", "1"),
            ("arp_ignore", "2"),
            ("arp_announce", "2"),
            ("log_martians", "1"),
            ("forwarding", "0"),
            ("accept_redirects", "0"),
            ("send_redirects", "0"),
        ] {
            for device in ["all", "pub0", "priv0"] {
                proxy.sysctl(&format!("ipv4/conf/{device}/{key}"), value)?;
            }
        }
        let mut log = KernelLog::open()?;
        let node = s1.node_with(s1.config_of_bytes())?;
        for _ in 0..3 {
            call(&s1, &backend)?.finish()?;
        }
        node.all_in_kernel().with_context(|| format!("rp_filter {strictness}"))?;
        let logged = log.since()?;
        let ours = logged.lines().filter(|line| line.contains("martian") && line.contains("172.24.0."));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    }
    Ok(())
}

#[test]
fn host_that_does_not_forward_ipv6_splices_it() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions { ipv6: true, ..LabOptions::default() })?;
    for device in ["all", "pub0", "priv0"] {
        s1.lab.proxy.ns.sysctl(&format!("ipv6/conf/{device}/forwarding"), "0")?;
        s1.lab.proxy.ns.sysctl(&format!("ipv6/conf/{device}/accept_ra"), "0")?;
    }
    let node = s1.node_with(s1.config_of_bytes())?;
    call(&s1, &backend)?.finish()?;
    node.all_in_kernel()
}

#[test]
fn every_setting_stays_as_it_was() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let before = settings(proxy)?;
    ensure!(before.len() > 300, "only {} settings could be read", before.len());
    let changed = || -> Result<Vec<String>> {
        let now = settings(proxy)?;
        let keys = before.keys().chain(now.keys());
        Ok(keys.filter(|key| before.get(*key) != now.get(*key)).map(|key| key.display().to_string()).collect())
    };
    let mut node = s1.node_with(s1.config_of_bytes())?;
    call(&s1, &backend)?.finish()?;
    node.all_in_kernel()?;
    assert_eq!(changed()?, Vec::<String>::new(), "while it runs");
    node.terminate()?;
    assert_eq!(changed()?, Vec::<String>::new(), "after its end");
    node.verb(&["detach"])?;
    assert_eq!(changed()?, Vec::<String>::new(), "after `ingress detach`");
    // A test that compares has to be able to see.
    proxy.sysctl("ipv4/ip_forward", "1")?;
    ensure!(!changed()?.is_empty(), "the comparison sees nothing");
    Ok(())
}

/// All of `/proc/sys/net`, as this namespace sees it, but for what counts.
fn settings(ns: &Namespace) -> Result<BTreeMap<PathBuf, String>> {
    const COUNTERS: [&str; 1] = ["nf_conntrack_count"];
    fn walk(dir: &Path, into: &mut BTreeMap<PathBuf, String>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let counts = path.file_name().is_some_and(|name| COUNTERS.iter().any(|counter| name == *counter));
            if path.is_dir() {
                walk(&path, into)?;
            } else if let Ok(value) = std::fs::read_to_string(&path)
                && !counts
            {
                into.insert(path, value);
            }
        }
        Ok(())
    }
    ns.exec(|| {
        let mut all = BTreeMap::new();
        walk(Path::new("/proc/sys/net"), &mut all)?;
        Ok(all)
    })
}

/// What the kernel says from now on.
struct KernelLog(std::fs::File);

impl KernelLog {
    fn open() -> Result<Self> {
        let mut log =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").context("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    fn since(&mut self) -> Result<String> {
        let mut all = String::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => all += &String::from_utf8_lossy(&record[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(all),
                // Some were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("reading the kernel's log"),
            }
        }
    }
}

fn call(s1: &S1, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}
