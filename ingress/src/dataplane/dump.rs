//! Lists that the kernel keeps, whole (NLM_F_DUMP, rtnetlink(7)).

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// All answers to `question`, in the kernel's order.
pub(super) fn dump(question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut answers = Vec::new();
    see(question, |answer| {
        answers.push(answer);
        ControlFlow::Continue(())
    })?;
    Ok(answers)
}

/// Shows `look` one answer after another, until it has seen enough.
pub(super) fn see(
    question: RouteNetlinkMessage,
    mut look: impl FnMut(RouteNetlinkMessage) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).clamp(16, rest.len());
            rest = &rest[length..];
            if matches!(message.payload, NetlinkPayload::Done(_) | NetlinkPayload::Error(_)) {
                return Ok(());
            }
            if let NetlinkPayload::InnerMessage(answer) = message.payload
                && look(answer).is_break()
            {
                return Ok(());
            }
        }
    }
}
