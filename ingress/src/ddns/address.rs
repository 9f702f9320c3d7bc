//! What this node's public address is: from a device, a URL or a program; and whether it may be published.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio::process::Command;

use super::client::{TIMEOUT, connectable, read, transport};
use super::plan::Kind;
use crate::config::AddressSource;

/// The address for records of this type, or why there is none.
pub(super) async fn find(source: &AddressSource, kind: Kind, allow_private: bool) -> Result<IpAddr, String> {
    match source {
        AddressSource::Interface(device) => {
            let addresses = of_device(device, kind)?;
            let mut good = addresses.iter().filter(|address| may_be_published(**address, allow_private).is_ok());
            match (good.next(), addresses.first()) {
                (Some(address), _) => Ok(*address),
                (None, Some(first)) => Err(may_be_published(*first, allow_private).err().unwrap_or_default()),
                (None, None) => Err(format!("{device} has no address for {kind} records")),
            }
        }
        AddressSource::Url(url) => {
            let said = ask(url, kind).await.map_err(|error| format!("{}: {error}", without_query(url)))?;
            judge(&said, kind, allow_private, &without_query(url))
        }
        AddressSource::Command(program) => {
            let said = run(program).await.map_err(|error| format!("{}: {error}", program.display()))?;
            judge(&said, kind, allow_private, &program.display().to_string())
        }
    }
}

fn judge(said: &str, kind: Kind, allow_private: bool, who: &str) -> Result<IpAddr, String> {
    let shown: String = said.chars().filter(|c| !c.is_control()).take(60).collect();
    let address: IpAddr = said.trim().parse().map_err(|_| format!("{who} says {shown:?}, which is no address"))?;
    if !kind.fits(address) {
        return Err(format!("{who} says {address}, which does not fit {kind} records"));
    }
    may_be_published(address, allow_private).map(|()| address)
}

/// Whether anybody can reach it. Loopback, multicast and the like are refused even where private addresses are not.
fn may_be_published(address: IpAddr, allow_private: bool) -> Result<(), String> {
    let (never, private) = match address {
        IpAddr::V4(four) => (
            four.is_loopback()
                || four.is_unspecified()
                || four.is_multicast()
                || four.is_broadcast()
                || four.octets()[0] == 0,
            is_special_four(four),
        ),
        IpAddr::V6(six) => (
            six.is_loopback()
                || six.is_unspecified()
                || six.is_multicast()
                || six.is_unicast_link_local()
                || six.to_ipv4_mapped().is_some(),
            is_special_six(six),
        ),
    };
    match (never, private && !allow_private) {
        (true, _) => Err(format!("{address} is no address that others can reach")),
        (false, true) => {
            Err(format!("{address} is not a public address; `allow_private: true` publishes it all the same"))
        }
        (false, false) => Ok(()),
    }
}

/// What IANA's registry of special-purpose addresses says is not globally reachable (RFC 6890).
fn is_special_four(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240
}

/// Global unicast is 2000::/3 (RFC 4291 section 2.4), without Teredo, 6to4 and what stands in documentation.
fn is_special_six(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    a & 0xe000 != 0x2000
        || a == 0x2002
        || (a, b) == (0x2001, 0)
        || (a, b) == (0x2001, 0xdb8)
        || (a == 0x3fff && b < 0x1000)
}

/// In the kernel's order, without IPv6 addresses that are temporary, tentative or about to go.
fn of_device(device: &str, kind: Kind) -> Result<Vec<IpAddr>, String> {
    let all = getifaddrs().map_err(|error| format!("listing addresses: {error}"))?;
    let mut is_known = false;
    let mut addresses = Vec::new();
    let passing = passing_addresses();
    for entry in all.filter(|entry| entry.interface_name == device) {
        is_known = true;
        let Some(socket) = entry.address else { continue };
        let four = socket.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        let address = four.or_else(|| socket.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())));
        addresses.extend(address.filter(|address| kind.fits(*address) && !passing.contains(address)));
    }
    if is_known { Ok(addresses) } else { Err(format!("there is no network device {device}")) }
}

/// From `/proc/net/if_inet6`: address, index, prefix, scope, flags, device. No such file: no IPv6.
fn passing_addresses() -> Vec<IpAddr> {
    let table = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (address, flags) =
            (u128::from_str_radix(words.first()?, 16).ok()?, u32::from_str_radix(words.get(4)?, 16).ok()?);
        (flags & PASSING != 0).then(|| IpAddr::V6(address.into()))
    };
    table.lines().filter_map(line).collect()
}

async fn ask(url: &str, kind: Kind) -> Result<String, String> {
    // So that the answer is about the wanted family.
    let local = match kind {
        Kind::A => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Kind::Aaaa => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let http = connectable(url, Some(local)).map_err(|error| error.to_string())?;
    let asking = async {
        let response = http.get(url).send().await.map_err(transport)?;
        let status = response.status();
        Ok::<_, super::api::ApiError>((status, read(response, MAX_WORD).await?))
    };
    let answer = tokio::time::timeout(TIMEOUT, asking).await.map_err(|_| format!("no answer within {TIMEOUT:?}"))?;
    let (status, bytes) = answer.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(format!("answered {status}"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn run(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let ran =
        tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| format!("no answer within {PATIENCE:?}"))?;
    let output = ran.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("ended with {}", output.status));
    }
    Ok(String::from_utf8_lossy(output.stdout.get(..MAX_WORD).unwrap_or(&output.stdout)).into_owned())
}

/// A query may hold a secret.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// `IFA_F_TEMPORARY`, `IFA_F_DEPRECATED`, `IFA_F_DADFAILED`, `IFA_F_TENTATIVE` (linux/if_addr.h).
const PASSING: u32 = 0x01 | 0x20 | 0x08 | 0x40;
/// An address and some white space.
const MAX_WORD: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_world_can_reach_is_published() {
        let judge = |text: &str, allow| may_be_published(text.parse().expect("an address"), allow).is_ok();
        for public in ["8.8.8.8", "100.128.0.1", "198.20.0.1", "2a01:4f8::1", "2606:4700::1111"] {
            assert!(judge(public, false), "{public}");
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.1.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.1",
            "240.0.0.1",
            "fd00::1",
            "2001:db8::1",
            "2002::1",
            "3fff::1",
            "64:ff9b::1",
        ] {
            assert!(!judge(private, false) && judge(private, true), "{private}");
        }
        for never in [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "ff02::1",
            "fe80::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!judge(never, true), "{never}");
        }
    }

    #[test]
    fn an_answer_that_is_no_address_of_the_family_is_refused() {
        let judge = |said: &str| judge(said, Kind::A, false, "it");
        assert_eq!(judge(" 8.8.8.8\n"), Ok(IpAddr::from([8, 8, 8, 8])));
        assert_eq!(judge("2606:4700::1111"), Err("it says 2606:4700::1111, which does not fit A records".into()));
        assert_eq!(judge("<html>\u{7}"), Err("it says \"<html>\", which is no address".into()));
    }

    #[test]
    fn a_device_that_is_missing_is_named() {
        assert_eq!(of_device("nonesuch0", Kind::A), Err("there is no network device nonesuch0".into()));
        assert_eq!(of_device("lo", Kind::A), Ok(vec![Ipv4Addr::LOCALHOST.into()]));
    }

    #[tokio::test]
    async fn a_program_that_fails_or_says_nothing_is_named() {
        for (program, expected) in [
            ("/bin/false", "/bin/false: ended with exit status: 1"),
            ("/bin/true", "/bin/true says \"\", which is no address"),
        ] {
            let source = AddressSource::Command(program.into());
            assert_eq!(find(&source, Kind::A, false).await, Err(expected.to_owned()));
        }
    }
}
