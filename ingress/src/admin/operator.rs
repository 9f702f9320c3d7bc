//! Who speaks on a Unix socket, as the kernel tells it (`SO_PEERCRED`).

use nix::unistd::{Uid, User};
use tokio::net::UnixStream;

/// One peer, taken when it connected.
#[derive(Clone, Copy, Debug)]
pub struct Operator {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Operator {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let known = stream.peer_cred().ok();
        Self { uid: known.map(|peer| peer.uid()), pid: known.and_then(|peer| peer.pid()) }
    }

    /// The user's name, and after `sudo` also whose login it began with: `root (alice)`. `said` is what our own command line
    /// says about that; who may speak here is believed. Asks the name service, so it may block.
    pub(super) fn name(self, said: Option<&str>) -> String {
        let Some(uid) = self.uid else { return "somebody".to_owned() };
        let user = name_of(uid);
        let said = said.map(|said| said.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect());
        let login: Option<String> = said.or_else(|| self.pid.and_then(login).map(name_of));
        match login.filter(|login| *login != user) {
            Some(login) => format!("{user} ({login})"),
            None => user,
        }
    }
}

fn name_of(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

/// The uid with which the peer's session logged in: proc_pid_loginuid(5). `None`: no login, as for a service, or a sandbox
/// that hides other processes.
fn login(pid: i32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

/// Linux ends them at 32.
const LONGEST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_on_the_same_host_has_a_name() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let me = name_of(Uid::current().as_raw());
        assert!(Operator::of(&ours).name(None).starts_with(&me));
        assert_eq!(Operator::of(&ours).name(Some("alice\n")), format!("{me} (alice)"));
        assert_eq!(name_of(4_000_000_123), "uid 4000000123");
        assert_eq!(Operator { uid: None, pid: None }.name(None), "somebody");
    }
}
