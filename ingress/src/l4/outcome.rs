//! How connections go: why one was refused, why one stayed in userspace, how one ended. Pure; metrics, logs and `ingress
//! status` print these words and no others.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::route::{ListenerName, PoolName, RouteName, Sni};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that labels, logs and `--output json` carry.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a connection was closed before it reached a backend.
    Refusal {
        /// A SNI that no route claims, default `reject`.
        UnknownSni => "unknown_sni",
        /// The same, while a provider has not said anything yet: it may be known in a moment.
        NoRoutesYet => "no_routes_yet",
        /// A ClientHello without SNI, default `reject`.
        NoSni => "no_sni",
        /// The first bytes are not a TLS ClientHello.
        NotTls => "not_tls",
        HelloTimeout => "hello_timeout",
        /// More than 64 KiB without a whole ClientHello.
        HelloTooLarge => "hello_too_large",
        /// The client closed before its ClientHello was whole.
        HelloEof => "hello_eof",
        ListenerLimit => "listener_limit",
        SourceLimit => "source_limit",
        GlobalLimit => "global_limit",
        /// `admission.deny` names the client, or the peer that speaks for it.
        Denied => "denied",
        /// A trusted source sent no valid PROXY header.
        BadProxyHeader => "bad_proxy_header",
        /// An untrusted source sent a PROXY header.
        UntrustedProxyHeader => "untrusted_proxy_header",
        /// No backend of the pool is up.
        NoBackend => "no_backend",
        /// Every backend that was tried refused or timed out.
        ConnectFailed => "connect_failed",
        /// The daemon is stopping.
        Draining => "draining",
        ClientReset => "client_reset",
    }
}

reasons! {
    /// Why a connection is relayed in userspace instead of handed off to the kernel.
    RelayReason {
        /// The kernel path is switched off or could not be set up; `ingress status` says why.
        KernelOff => "kernel_off",
        /// The pool's policy says so.
        Policy => "policy",
        /// The client is further away than the pool's policy allows.
        Rtt => "rtt",
        /// One speaks IPv6 and the other IPv4, or one has a link-local address.
        Family => "family",
        /// A loopback address, or a backend on this host.
        Local => "local",
        /// The route to client or backend leaves by a device that does not carry the programs.
        Device => "device",
        /// The handshake was not seen by the programs with the sockets' own addresses: NAT between, or the handshake is older.
        Unseen => "unseen",
        /// Timestamps, SACK or other TCP options do not match on both legs.
        Options => "options",
        /// Segments that one leg may send do not fit the other leg's path.
        Mtu => "mtu",
        /// One of the sockets is not ESTABLISHED any more.
        HalfClosed => "half_closed",
        /// Out-of-order data stands in the client's socket.
        OutOfOrder => "out_of_order",
        /// The backend spoke before the flow entries stood.
        ServerFirst => "server_first",
        /// What the client already sent exceeds the backend's window.
        Window => "window",
        /// All slots or flow entries are taken.
        Full => "full",
        /// No free source port towards this backend.
        Ports => "ports",
        /// A system call of the handoff failed; the log says which at level `debug`.
        Error => "error",
        /// Routing rules send our own packets another way than spliced ones would find: by a firewall mark, or by ports.
        Route => "route",
        /// The pool's policy says so, until the connection has once been quiet.
        WhenIdle => "when_idle",
    }
}

reasons! {
    /// How a connection that reached a backend ended.
    EndReason {
        /// FIN both ways.
        Closed => "closed",
        ClientReset => "client_reset",
        BackendReset => "backend_reset",
        IdleTimeout => "idle_timeout",
        /// The backend went down and the pool says `on_down: cut`.
        BackendDown => "backend_down",
        /// The backend is not its pool's primary any more.
        Demoted => "demoted",
        /// `admission.deny` names the client now.
        Denied => "denied",
        /// Its route is gone, and says `on_remove: cut`, or the time of its `drain` is over.
        RouteRemoved => "route_removed",
        /// The network device towards one end is gone, and no other led there.
        DeviceGone => "device_gone",
        /// An operator put the backend into maintenance.
        Maintenance => "maintenance",
        /// An operator's `ingress flows kill`.
        Killed => "killed",
        /// The daemon died between accept and handoff, or stopped while relaying.
        DaemonStopped => "daemon_stopped",
        Error => "error",
        /// In the kernel, one end did not answer any of `kernel.keepalive`'s questions.
        Keepalive => "keepalive",
    }
}

/// Where the bytes of a connection run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Kernel,
    Relay(RelayReason),
}

impl Mode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Relay(_) => "relay",
        }
    }
}

/// What is known of a connection from accept to the choice of its backend. One per connection; goes into its log lines.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique on this host for the life of the state directory; also the PROXY v2 unique-id.
    pub id: u64,
    pub listener: ListenerName,
    /// As the backend is told: from an accepted PROXY header, else the socket's peer.
    pub client: SocketAddr,
    /// The address that the client called.
    pub local: SocketAddr,
    pub started: SystemTime,
    pub sni: Option<Sni>,
    /// The client's first ALPN offers, joined by `,`.
    pub alpn: Option<String>,
    /// `None`: the listener's default pool.
    pub route: Option<RouteName>,
    pub pool: PoolName,
    pub backend: String,
    pub backend_address: SocketAddr,
}

/// One JSON line in the log at the end of each connection.
#[derive(Clone, Debug)]
pub struct ConnectionEnd {
    pub info: ConnectionInfo,
    pub mode: Mode,
    pub reason: EndReason,
    /// Payload that the other end acknowledged, without PROXY headers.
    pub bytes_to_backend: u64,
    pub bytes_to_client: u64,
    pub duration: Duration,
}
