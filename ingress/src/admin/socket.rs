//! The Unix socket: bound with mode 0600 from its first moment, and never taken from a daemon that still answers.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, chown};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::operator::Operator;
use crate::config::HaproxySocketConfig;
use crate::serve::Accept;

/// A bound socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Of our file, so that a successor's is not removed.
    inode: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path}: another ingress answers on this socket; stop it, or give this one its own admin.socket")]
    InUse { path: PathBuf },
    #[error(
        "{path}: somebody answers on this socket, HAProxy perhaps; stop it, or set admin.haproxy_socket.path to another"
    )]
    HaproxyInUse { path: PathBuf },
    #[error("{path}: exists and is not a socket; remove it, or set {key} to another path")]
    NotASocket { path: PathBuf, key: &'static str },
    #[error("{path}: there is no group {group}; `getent group` lists them, admin.haproxy_socket.group names one")]
    NoGroup { path: PathBuf, group: String },
    #[error("{path}: cannot make the admin socket")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: cannot make HAProxy's socket: {source}; the systemd unit may write to /run/ingress only, and changes no groups: \
         see \"HAProxy's commands\" in operations.md"
    )]
    Haproxy { path: PathBuf, source: io::Error },
}

impl AdminSocket {
    /// Makes the directory if it is missing. Must run inside a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        remove_if_stale(path).map_err(|taken| match taken {
            Taken::Answers => SocketError::InUse { path: path.to_owned() },
            Taken::NotASocket => SocketError::NotASocket { path: path.to_owned(), key: "admin.socket" },
            Taken::Io(source) => SocketError::Io { path: path.to_owned(), source },
        })?;
        Self::make(path, PRIVATE, None).map_err(|source| SocketError::Io { path: path.to_owned(), source })
    }

    /// The socket of [`super::haproxy`].
    pub(super) fn bind_for_haproxy(config: &HaproxySocketConfig) -> Result<Self, SocketError> {
        let HaproxySocketConfig { path, mode, group, level: _ } = config;
        let of = |name: &String| {
            let found = Group::from_name(name).ok().flatten().map(|group| group.gid);
            found.ok_or_else(|| SocketError::NoGroup { path: path.clone(), group: name.clone() })
        };
        let group = group.as_ref().map(of).transpose()?;
        remove_if_stale(path).map_err(|taken| match taken {
            Taken::Answers => SocketError::HaproxyInUse { path: path.clone() },
            Taken::NotASocket => SocketError::NotASocket { path: path.clone(), key: "admin.haproxy_socket.path" },
            Taken::Io(source) => SocketError::Haproxy { path: path.clone(), source },
        })?;
        Self::make(path, Mode::from_bits_truncate(*mode), group)
            .map_err(|source| SocketError::Haproxy { path: path.clone(), source })
    }

    fn make(path: &Path, mode: Mode, group: Option<Gid>) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let listener = bind_private(path)?;
        // From narrow to wide: nobody who should not gets in between. A directory with the setgid bit has given its group
        // already, which takes no right to change owners.
        if group.is_some_and(|group| fs::metadata(path).is_ok_and(|file| file.gid() != group.as_raw())) {
            chown(path, None, group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode.bits()))?;
        let inode = fs::symlink_metadata(path)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

impl Accept for AdminSocket {
    type Io = tokio::net::UnixStream;
    type Peer = Operator;

    async fn accept(&self) -> io::Result<(Self::Io, Operator)> {
        let (io, _) = self.listener.accept().await?;
        let operator = Operator::of(&io);
        Ok((io, operator))
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "admin socket stays behind");
        }
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // bind() makes the file with the socket's own mode, so there is no moment in which others could connect.
    fchmod(socket.as_fd(), PRIVATE)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Why a path is not to be had.
enum Taken {
    Answers,
    NotASocket,
    Io(io::Error),
}

fn remove_if_stale(path: &Path) -> Result<(), Taken> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Taken::Io(e)),
    };
    if !file.file_type().is_socket() {
        return Err(Taken::NotASocket);
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Taken::Answers),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(Taken::Io),
        Err(e) => Err(Taken::Io(e)),
    }
}

const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
const BACKLOG: i32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("run/admin.sock");
        let _socket = AdminSocket::bind(&path).expect("bind");
        assert_eq!(fs::metadata(&path).expect("the socket's file").mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_not_taken() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("admin.sock");
        let _first = AdminSocket::bind(&path).expect("bind");
        let second = AdminSocket::bind(&path);
        assert!(matches!(second, Err(SocketError::InUse { .. })), "{second:?}");
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_daemon_left_is_replaced() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        AdminSocket::bind(&path).expect("the stale file is replaced");
    }

    #[tokio::test]
    async fn haproxys_socket_has_the_mode_that_it_is_given() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("run/haproxy.sock");
        let mut config = HaproxySocketConfig {
            path: path.clone(),
            mode: 0o660,
            group: None,
            level: crate::config::SocketLevel::Admin,
        };
        let _socket = AdminSocket::bind_for_haproxy(&config).expect("bind");
        assert_eq!(fs::metadata(&path).expect("the socket's file").mode() & 0o777, 0o660);
        let second = AdminSocket::bind_for_haproxy(&config).expect_err("it answers");
        assert!(second.to_string().ends_with("stop it, or set admin.haproxy_socket.path to another"), "{second}");
        config.group = Some("no-such-group".into());
        let unknown = AdminSocket::bind_for_haproxy(&config).expect_err("no group");
        assert!(unknown.to_string().contains("there is no group no-such-group"), "{unknown}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").expect("write");
        let refused = AdminSocket::bind(&path);
        assert!(matches!(refused, Err(SocketError::NotASocket { .. })), "{refused:?}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious");
    }

    #[tokio::test]
    async fn the_file_goes_with_the_socket_but_a_successors_file_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("admin.sock");
        drop(AdminSocket::bind(&path).expect("bind"));
        assert!(!path.exists());
        let old = AdminSocket::bind(&path).expect("bind");
        fs::rename(&path, dir.path().join("moved")).expect("rename");
        let _new = AdminSocket::bind(&path).expect("bind");
        drop(old);
        assert!(path.exists());
    }
}
