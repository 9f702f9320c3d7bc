//! The Unix socket: bound with mode 0600 from its first moment, and never taken from a daemon that still answers.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::operator::Operator;
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
    #[error("{path}: exists and is not a socket; remove it, or set admin.socket to another path")]
    NotASocket { path: PathBuf },
    #[error("{path}: cannot make the admin socket")]
    Io { path: PathBuf, source: io::Error },
}

impl AdminSocket {
    /// Makes the directory if it is missing. Must run inside a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        remove_if_stale(path)?;
        let listener = bind_private(path).map_err(io)?;
        let inode = fs::symlink_metadata(path).map_err(io)?.ino();
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
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

fn remove_if_stale(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: path.to_owned(), source };
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(e)),
    };
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(e) => Err(io(e)),
    }
}

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
