//! `l4::proxy_header`: what was read can be written and read again, and no byte changes its mind.

use std::net::SocketAddr;

use ingress::config::{ProxyProtocol, ProxyTlvs};
use ingress::l4::proxy_header::{Addresses, Facts, HeaderOutcome, MAX_V2_HEADER, ProxyHeader, Tlv, for_backend, parse};

pub fn check(data: &[u8]) {
    let whole = parse(data);
    let step = 1 + data.len() / 32;
    for end in (0..data.len()).step_by(step) {
        let outcome = parse(&data[..end]);
        if outcome != HeaderOutcome::NeedMore {
            assert_eq!(outcome, whole, "{end} bytes were enough for an answer");
        }
    }
    match whole {
        HeaderOutcome::Header { header, length } => {
            assert_eq!(parse(&data[..length - 1]), HeaderOutcome::NeedMore, "no less is enough");
            check_header(&header);
        }
        HeaderOutcome::NeedMore => assert!(data.len() < MAX_V2_HEADER),
        HeaderOutcome::NotProxy | HeaderOutcome::Malformed(_) => {}
    }
}

fn check_header(header: &ProxyHeader) {
    let socket = SocketAddr::from(([192, 0, 2, 1], 443));
    let Addresses { source, destination } =
        header.addresses.unwrap_or(Addresses { source: socket, destination: socket });
    assert_eq!(source.is_ipv4(), destination.is_ipv4());

    let facts = Facts {
        authority: Some("app.example.com"),
        alpn: Some("h2,http/1.1"),
        unique_id: Some(42),
        passed_on: Some(&header.tlvs),
    };
    let read = sent(ProxyProtocol::V1, source, destination, &facts);
    assert_eq!(read.addresses, Some(Addresses { source, destination }));

    let read = sent(ProxyProtocol::V2(ProxyTlvs::default()), source, destination, &facts);
    assert_eq!(read.addresses, Some(Addresses { source, destination }));
    let without_sum = |header: &ProxyHeader| -> Vec<(u8, Vec<u8>)> {
        let kept = header.tlvs.iter().filter(|tlv| tlv.kind != Tlv::CRC32C);
        kept.map(|tlv| (tlv.kind, tlv.value.to_vec())).collect()
    };
    // The socket's addresses may take the room that a header without addresses used for its last TLV.
    if header.addresses.is_some() {
        assert_eq!(without_sum(&read), without_sum(header), "TLVs are passed on as they are");
    }
    let has_sum = |header: &ProxyHeader| header.tlvs.find(Tlv::CRC32C).is_some();
    assert_eq!(has_sum(&read), has_sum(header));
}

/// What a backend that reads as we do gets to know.
fn sent(protocol: ProxyProtocol, source: SocketAddr, destination: SocketAddr, facts: &Facts<'_>) -> ProxyHeader {
    match parse(&for_backend(protocol, source, destination, facts)) {
        HeaderOutcome::Header { header, .. } => header,
        outcome @ (HeaderOutcome::NeedMore | HeaderOutcome::NotProxy | HeaderOutcome::Malformed(_)) => {
            panic!("what was written is {outcome:?}")
        }
    }
}
