//! TCP_REPAIR (tcp(7), kernel commit ee9952831cfd): reads a socket's sequence numbers and closes it without a word on the wire.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

const TCP_REPAIR_ON: libc::c_int = 1;
/// Leaves repair mode without sending a window probe (kernel commit 31048d7aedf3).
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
const TCP_RECV_QUEUE: libc::c_int = 1;
const TCP_SEND_QUEUE: libc::c_int = 2;

/// Where both streams of a socket stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The next byte that this socket would send.
    pub(crate) write: u32,
    /// The next byte that its owner would read.
    pub(crate) read: u32,
}

/// What the other end of a socket has said that nobody has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    Something,
    /// That it will say no more.
    End,
}

/// What TCP_INFO says that matters for a handoff.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info {
    pub(crate) established: bool,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    /// The peer's window scale, and ours.
    pub(crate) peer_scale: u8,
    pub(crate) own_scale: u8,
    /// Smoothed; of the handshake alone if nothing else was sent.
    pub(crate) rtt: Duration,
    /// Segments that ever arrived out of order.
    pub(crate) out_of_order: u32,
    /// The largest segment that we may send, and that the peer may.
    pub(crate) send_mss: u32,
    pub(crate) receive_mss: u32,
    /// What the peer is willing to take, bytes; 0 where the kernel does not say.
    pub(crate) send_window: u32,
}

/// Asks in repair mode, and leaves it again.
pub(crate) fn numbers(fd: RawFd) -> io::Result<Numbers> {
    set(fd, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    let numbers = read_numbers(fd);
    set(fd, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    share_port(fd)?;
    numbers
}

/// Leaving repair mode clears SO_REUSEADDR (tcp.c, `TCP_REPAIR_OFF`). A socket without it that outlives a killed daemon,
/// its FIN unanswered, would keep the next daemon from binding the listener's port for minutes.
fn share_port(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        let len = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const on).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_numbers(fd: RawFd) -> io::Result<Numbers> {
    set(fd, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
    let write = get(fd, libc::TCP_QUEUE_SEQ)? as u32;
    set(fd, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)?;
    // Repair mode does not stop packets: the queue's length and its end must come from one moment.
    let mut received = get(fd, libc::TCP_QUEUE_SEQ)? as u32;
    loop {
        let unread = unread(fd)?;
        let again = get(fd, libc::TCP_QUEUE_SEQ)? as u32;
        if again == received {
            return Ok(Numbers { write, read: received.wrapping_sub(unread) });
        }
        received = again;
    }
}

pub(crate) fn said(fd: RawFd) -> io::Result<Said> {
    match nix::sys::socket::recv(fd, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Ok(Said::End),
        Ok(_) => Ok(Said::Something),
        Err(Errno::EAGAIN) => Ok(Said::Nothing),
        Err(error) => Err(error.into()),
    }
}

fn unread(fd: RawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    if unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes as u32)
}

/// Of a socket from which all was read: segments wait for one that is missing before them. Memory that is in use may also be
/// a segment that came in order a moment ago, so segments must once have come out of order.
pub(crate) fn holds_out_of_order(fd: RawFd) -> io::Result<bool> {
    Ok(queued_memory(fd)? > 0 && info(fd)?.out_of_order > 0)
}

/// Established both ways, with nothing to be read, not even out of order, and nothing that the peer has not acknowledged.
pub(crate) fn is_quiet(fd: RawFd) -> io::Result<bool> {
    Ok(unread(fd)? == 0 && unacknowledged(fd)? == 0 && queued_memory(fd)? == 0 && info(fd)?.established)
}

/// Bytes in the send queue: not sent, or not acknowledged (tcp(7), SIOCOUTQ).
fn unacknowledged(fd: RawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    if unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes as u32)
}

/// Bytes of memory in the receive queues, the out-of-order queue included (SO_MEMINFO, `SK_MEMINFO_RMEM_ALLOC`).
fn queued_memory(fd: RawFd) -> io::Result<u32> {
    const SO_MEMINFO: libc::c_int = 55;
    let mut words = [0u32; 9];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, words.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { Ok(words[0]) } else { Err(io::Error::last_os_error()) }
}

/// Closes without FIN or RST. The peer's next packet would find no socket; a flow entry must stand in the way.
pub(crate) fn close_silently(socket: OwnedFd) {
    if let Err(error) = set(socket.as_raw_fd(), libc::TCP_REPAIR, TCP_REPAIR_ON) {
        tracing::debug!(%error, "TCP_REPAIR on close: tc egress drops what the socket says");
    }
    drop(socket);
}

pub(crate) fn info(fd: RawFd) -> io::Result<Info> {
    // SAFETY: all zeroes is a valid tcp_info.
    let mut raw: TcpInfo = unsafe { std::mem::zeroed() };
    let mut len = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    if unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut raw).cast(), &raw mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    const OPTION_TIMESTAMPS: u8 = 1;
    const OPTION_SACK: u8 = 2;
    const OPTION_WINDOW_SCALE: u8 = 4;
    const ESTABLISHED: u8 = 1;
    let scaled = raw.options & OPTION_WINDOW_SCALE != 0;
    Ok(Info {
        established: raw.state == ESTABLISHED,
        timestamps: raw.options & OPTION_TIMESTAMPS != 0,
        sack: raw.options & OPTION_SACK != 0,
        peer_scale: if scaled { raw.window_scales & 15 } else { 0 },
        own_scale: if scaled { raw.window_scales >> 4 } else { 0 },
        rtt: Duration::from_micros(raw.rtt.into()),
        out_of_order: raw.out_of_order,
        send_mss: raw.send_mss,
        receive_mss: raw.advertised_mss,
        send_window: raw.send_window,
    })
}

/// `struct tcp_info` of linux/tcp.h up to `tcpi_snd_wnd` (kernel 5.4).
#[repr(C)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    window_scales: u8,
    delivery_rate_app_limited: u8,
    rto: u32,
    ato: u32,
    send_mss: u32,
    receive_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last: [u32; 4],
    path_mtu: u32,
    receive_ssthresh: u32,
    rtt: u32,
    rtt_variance: u32,
    send_ssthresh: u32,
    send_cwnd: u32,
    advertised_mss: u32,
    reordering: u32,
    receive_rtt: u32,
    receive_space: u32,
    total_retrans: u32,
    rates_and_bytes: [u64; 4],
    segments_out: u32,
    segments_in: u32,
    not_sent: u32,
    min_rtt: u32,
    data_segments_in: u32,
    data_segments_out: u32,
    delivery_rate: u64,
    busy_times: [u64; 3],
    delivered: u32,
    delivered_ce: u32,
    bytes_sent_and_retransmitted: [u64; 2],
    dsack_dups: u32,
    reordering_seen: u32,
    out_of_order: u32,
    send_window: u32,
}

const _: () = assert!(size_of::<TcpInfo>() == 232);

fn set(fd: RawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: an int option with its own size.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, option, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
