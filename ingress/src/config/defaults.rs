//! What holds where the file says nothing. The schema, the documentation and the `Default` impls of the model all read
//! these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
pub(super) const LISTENER_MAX_CONNECTIONS: u32 = 100_000;
pub(super) const MAX_CONNECTIONS_PER_SOURCE: u32 = 10_000;

pub(super) const WEIGHT: u32 = 1;
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const CONNECT_RETRIES: u32 = 2;
pub(super) const HANDOFF_WHEN_IDLE: Duration = Duration::from_secs(1);
pub(super) const SLOW_START: Duration = Duration::ZERO;

pub(super) const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
pub(super) const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) const HEALTH_RISE: u32 = 2;
pub(super) const HEALTH_FALL: u32 = 3;
pub(super) const HEALTH_PATH: &str = "/";
pub(super) const HEALTH_EXPECT: (u16, u16) = (200, 399);

pub(super) const MAX_CONNECTIONS: u32 = 200_000;
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) const ADMIN_SOCKET: &str = "/run/ingress/admin.sock";
pub(super) const HAPROXY_SOCKET_MODE: u32 = 0o600;
pub(super) const ADMIN_HTTP_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8404);

pub(super) const KERNEL_ENABLED: bool = true;
/// From which Linux picks source ports by itself, unless told otherwise (`ip_local_port_range`).
pub(super) const HOST_PORT_RANGE: (u16, u16) = (32_768, 60_999);
/// Below [`HOST_PORT_RANGE`].
pub(super) const PORT_RANGE: (u16, u16) = (20_000, 32_767);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub(super) const KEEPALIVE_PROBES: u32 = 3;
pub(super) const PIN_DIR: &str = "/sys/fs/bpf/ingress";

pub const STATE_DIR: &str = "/var/lib/ingress";

pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(5);
pub(super) const POLL_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const LAST_GOOD_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
pub(super) const STALE_AFTER: Duration = Duration::from_secs(30);
pub(super) const MAX_REGISTRATIONS: u32 = 100_000;
pub(super) const ACK_TIMEOUT: Duration = Duration::from_millis(200);
pub(super) const DDNS_INTERVAL: Duration = Duration::from_secs(60);
pub(super) const DDNS_VERIFY: Duration = Duration::from_secs(3600);
pub(super) const DDNS_TTL: Duration = Duration::from_secs(300);
pub(super) const ETCD_PREFIX: &str = "/ingress";
pub(super) const ETCD_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) const AUTH_PATH: &str = "/";
pub(super) const ALL_ADDRESSES: [IpAddr; 2] = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];

pub(super) const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const HOOK_GATHER: Duration = Duration::from_secs(1);
pub(super) const HOOK_RETRY_FOR: Duration = Duration::from_secs(3600);
pub(super) const HOOK_QUEUE: u32 = 1_000;
