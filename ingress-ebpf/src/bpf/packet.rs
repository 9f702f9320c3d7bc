//! The one place that touches packet memory.

use core::marker::PhantomData;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_pull_data,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use ingress_ebpf::flow::FlowKey;
use ingress_ebpf::header::{ETHERNET_LEN, IPV6_LEN, TCP_LEN, Tcp};
use ingress_ebpf::ip::{self, Ip, Odd};
use ingress_ebpf::rewrite::Difference;
use ingress_ebpf::too_big::TooBig;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// linux/if_packet.h
const PACKET_HOST: u32 = 0;
const BPF_F_PSEUDO_HDR: u64 = 16;
/// Where the checksum stands in TCP's header.
pub(super) const TCP_CHECK: usize = 16;
const ICMP_CHECK: usize = 2;

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Packet {
    skb: *mut __sk_buff,
}

/// Which of the two that every program exists in.
pub(super) enum Family {
    Ipv4,
    Ipv6,
    Other,
}

/// What the headers of a plain TCP packet say, but for the addresses.
pub(super) struct Plain {
    pub(super) tcp: Tcp,
    /// Hops that are left.
    pub(super) hops: u8,
    /// TCP's header and payload, bytes; 0 where the IP header claims more than is there.
    pub(super) segment_len: u32,
}

/// What the first look at a packet finds.
pub(super) enum Look {
    /// TCP in one piece, right behind the IP header.
    Plain,
    /// Anything else, or TCP with more between.
    Odd,
    /// Not even long enough to be TCP.
    Other,
}

/// What stands before TCP in a packet. Each program, and most of its functions, is compiled once for each that it meets.
pub(super) trait Layout {
    type Ip: Ip;
    /// Bytes before the IP header: Ethernet's, or none on devices that carry bare IP packets.
    const LINK: usize;
    /// Where TCP starts behind an IP header without options.
    const TCP: usize = Self::LINK + <Self::Ip as Ip>::LEN;
}

pub(super) struct Ethernet<I>(PhantomData<I>);
pub(super) struct Bare<I>(PhantomData<I>);

impl<I: Ip> Layout for Ethernet<I> {
    type Ip = I;
    const LINK: usize = ETHERNET_LEN;
}

impl<I: Ip> Layout for Bare<I> {
    type Ip = I;
    const LINK: usize = 0;
}

impl Packet {
    pub(super) fn new(context: &TcContext) -> Self {
        Self { skb: context.skb.skb }
    }

    #[inline(always)]
    fn field<T: Copy>(&self, read: impl Fn(&__sk_buff) -> T) -> T {
        // SAFETY: the kernel hands every program a valid context; the verifier checks each access.
        read(unsafe { &*self.skb })
    }

    #[inline(always)]
    pub(super) fn arrived_on(&self) -> u32 {
        self.field(|skb| skb.ingress_ifindex)
    }

    /// Came in by a device: spliced by us, or routed by the host. Not our own stack's.
    #[inline(always)]
    pub(super) fn is_forwarded(&self) -> bool {
        self.arrived_on() != 0
    }

    #[inline(always)]
    pub(super) fn device(&self) -> u32 {
        self.field(|skb| skb.ifindex)
    }

    #[inline(always)]
    pub(super) fn priority(&self) -> u32 {
        self.field(|skb| skb.priority)
    }

    #[inline(always)]
    pub(super) fn set_priority(&self, priority: u32) {
        // SAFETY: as in `field`; priority is writable for tc programs.
        unsafe { (*self.skb).priority = priority };
    }

    /// The firewall mark.
    #[inline(always)]
    pub(super) fn mark(&self) -> u32 {
        self.field(|skb| skb.mark)
    }

    #[inline(always)]
    pub(super) fn clear_mark(&self) {
        if self.mark() != 0 {
            // SAFETY: as in `field`; the mark is writable for tc programs.
            unsafe { (*self.skb).mark = 0 };
        }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> u32 {
        self.field(|skb| skb.len)
    }

    /// Payload of each segment into which the packet is yet to be cut; 0: it goes as it is.
    #[inline(always)]
    pub(super) fn segment_payload(&self) -> u32 {
        self.field(|skb| skb.gso_size)
    }

    /// The id in a VLAN tag that stands beside the packet; 0: none, or a priority only.
    #[inline(always)]
    pub(super) fn vlan(&self) -> u32 {
        self.field(|skb| if skb.vlan_present != 0 { skb.vlan_tci & 0x0fff } else { 0 })
    }

    pub(super) fn raw(&self) -> *mut __sk_buff {
        self.skb
    }

    /// True if the linear part of the packet holds `bytes` bytes.
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        let (data, end) = self.field(|skb| (skb.data as usize, skb.data_end as usize));
        data + bytes <= end
    }

    /// A pointer to `T` at `offset`, if the linear part of the packet holds it whole.
    #[inline(always)]
    pub(super) fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (data, end) = self.field(|skb| (skb.data as usize, skb.data_end as usize));
        if data + offset + size_of::<T>() > end {
            return None;
        }
        Some((data + offset) as *mut T)
    }

    /// The EtherType, in network byte order.
    #[inline(always)]
    pub(super) fn protocol(&self) -> u16 {
        self.field(|skb| skb.protocol) as u16
    }

    /// The frame is addressed to the device, as the stack judges it too. Not so one for a neighbour, which a switch that does not
    /// know its port sends to all, nor one to a group.
    #[inline(always)]
    pub(super) fn is_addressed_to_device(&self) -> bool {
        self.field(|skb| skb.pkt_type) == PACKET_HOST
    }

    /// A packet with a VLAN tag beside it is another network's: the VLAN device gets to see it without.
    #[inline(always)]
    pub(super) fn family(&self) -> Family {
        if self.field(|skb| skb.vlan_present) != 0 {
            return Family::Other;
        }
        match u16::from_be(self.protocol()) {
            ETH_P_IP => Family::Ipv4,
            ETH_P_IPV6 => Family::Ipv6,
            _ => Family::Other,
        }
    }

    /// Of a packet whose [`Packet::family`] is that of `L`.
    #[inline(always)]
    pub(super) fn look<L: Layout>(&self) -> Look {
        let headers_end = L::TCP + TCP_LEN;
        if !self.holds(headers_end) && self.pull(headers_end).is_none() {
            return Look::Other;
        }
        match self.ip::<L>() {
            Some(ip) if ip.is_plain_tcp() => Look::Plain,
            Some(_) => Look::Odd,
            None => Look::Other,
        }
    }

    #[inline(always)]
    pub(super) fn ip<L: Layout>(&self) -> Option<&L::Ip> {
        let ip = self.at::<L::Ip>(L::LINK)?;
        // SAFETY: `at` has checked the bounds; the kernel aligns the IP header to four bytes.
        Some(unsafe { &*ip })
    }

    /// The header of a plain TCP packet.
    #[inline(always)]
    pub(super) fn tcp<L: Layout>(&self) -> Option<Tcp> {
        let tcp = self.at::<Tcp>(L::TCP)?;
        // SAFETY: as above.
        Some(unsafe { *tcp })
    }

    /// What a plain TCP packet says.
    #[inline(always)]
    pub(super) fn plain<L: Layout>(&self) -> Option<(Plain, FlowKey)> {
        let (ip, tcp) = (self.ip::<L>()?, self.tcp::<L>()?);
        let segment_len = ip.segment_len(self.len().wrapping_sub(L::LINK as u32));
        let key = ip::key(ip, tcp.source_port, tcp.destination_port);
        Some((Plain { tcp, hops: ip.hops(), segment_len }, key))
    }

    /// TCP that is not plain all the same: its key, and what stands between.
    #[inline(always)]
    pub(super) fn odd<L: Layout>(&self) -> Option<(FlowKey, Odd)> {
        let ip = self.ip::<L>()?;
        let four = |at| {
            let mut bytes = [0u8; 4];
            self.load(L::LINK + at, &mut bytes).map(|()| bytes)
        };
        let (at, odd) = ip.odd_tcp(four)?;
        let mut ports = [0u16; 2];
        self.load(L::LINK + at, &mut ports)?;
        Some((ip::key(ip, ports[0], ports[1]), odd))
    }

    /// Makes one packet of segments that GRO has gathered in a list (`SKB_GSO_FRAGLIST`), whose other headers no program reaches: with a
    /// byte of the second segment, the first is none any more, and all are cut anew, by the first one's headers (Linux 17bd3bd82f9f,
    /// `tcp4_gso_segment`). `headers`: bytes before the payload.
    #[inline(always)]
    pub(super) fn break_list(&self, headers: u32) -> Option<()> {
        let first = headers.wrapping_add(self.segment_payload());
        if self.len() <= first {
            return Some(());
        }
        self.pull(first as usize + 1)
    }

    /// Changes both headers of a plain TCP packet where they lie, and repairs the TCP checksum by the difference.
    #[inline(always)]
    pub(super) fn rewrite<L: Layout>(&self, change: impl FnOnce(&mut L::Ip, &mut Tcp) -> Difference) -> Option<()> {
        let (ip, tcp) = (self.at::<L::Ip>(L::LINK)?, self.at::<Tcp>(L::TCP)?);
        // SAFETY: bounds are checked by `at`, alignment as in `look`; the two do not overlap.
        let difference = unsafe { change(&mut *ip, &mut *tcp) };
        if difference.pseudo != 0 {
            self.replace_checksum(L::TCP + TCP_CHECK, difference.pseudo, BPF_F_PSEUDO_HDR)?;
        }
        self.update_sum(difference.uncovered);
        self.replace_checksum(L::TCP + TCP_CHECK, difference.header, 0)
    }

    /// An ICMP message in one piece with the start of the packet that it quotes. `None`: something else.
    #[inline(always)]
    pub(super) fn too_big<L: Layout>(&self) -> Option<(*mut L::Ip, *mut TooBig<L::Ip>)> {
        let end = L::TCP + size_of::<TooBig<L::Ip>>();
        if !self.holds(end) {
            self.pull(end)?;
        }
        Some((self.at::<L::Ip>(L::LINK)?, self.at::<TooBig<L::Ip>>(L::TCP)?))
    }

    /// Likewise changes an ICMP message that [`Packet::too_big`] has found.
    #[inline(always)]
    pub(super) fn rewrite_too_big<L: Layout>(
        &self,
        change: impl FnOnce(&mut L::Ip, &mut TooBig<L::Ip>) -> Difference,
    ) -> Option<()> {
        let (ip, message) = self.too_big::<L>()?;
        // SAFETY: as in `rewrite`.
        let difference = unsafe { change(&mut *ip, &mut *message) };
        // ICMP's checksum covers a pseudo header in IPv6 only (RFC 4443 section 2.3).
        if <L::Ip as Ip>::LEN == IPV6_LEN {
            self.replace_checksum(L::TCP + ICMP_CHECK, difference.pseudo, BPF_F_PSEUDO_HDR)?;
            self.update_sum(difference.uncovered);
        }
        self.replace_checksum(L::TCP + ICMP_CHECK, difference.header, 0)
    }

    #[inline(always)]
    fn update_sum(&self, difference: u32) {
        if difference != 0 {
            // SAFETY: a plain call. An error says that the packet came without a sum to be updated.
            unsafe { bpf_csum_update(self.skb, difference) };
        }
    }

    #[inline(always)]
    fn replace_checksum(&self, offset: usize, difference: u32, flags: u64) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, difference as u64, flags) };
        (result == 0).then_some(())
    }

    /// Where there are any.
    #[inline(always)]
    pub(super) fn swap_ethernet_addresses<L: Layout>(&self) -> Option<()> {
        if L::LINK != ETHERNET_LEN {
            return Some(());
        }
        let addresses = self.at::<[[u16; 3]; 2]>(0)?;
        // SAFETY: `at` has checked the bounds.
        unsafe {
            let [destination, source] = *addresses;
            *addresses = [source, destination];
        }
        Some(())
    }

    /// bpf_redirect_neigh takes an Ethernet header off every packet, and drops one that has none.
    #[inline(always)]
    pub(super) fn complete_for_redirect<L: Layout>(&self) -> Option<()> {
        if L::LINK == ETHERNET_LEN {
            return Some(());
        }
        // SAFETY: the helper checks the length.
        (unsafe { bpf_skb_change_head(self.skb, ETHERNET_LEN as u32, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn pull(&self, len: usize) -> Option<()> {
        // SAFETY: the helper checks `len`.
        (unsafe { bpf_skb_pull_data(self.skb, len as u32) } == 0).then_some(())
    }

    #[inline(always)]
    pub(super) fn load<T>(&self, offset: usize, into: &mut T) -> Option<()> {
        load(self.skb, offset as u32, into)
    }
}

#[inline(always)]
pub(super) fn load<T>(skb: *mut __sk_buff, offset: u32, into: &mut T) -> Option<()> {
    // SAFETY: the helper writes exactly `size_of::<T>()` bytes or fails.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut *into).cast(), size_of::<T>() as u32) };
    (result == 0).then_some(())
}

#[inline(always)]
pub(super) fn store<T>(skb: *mut __sk_buff, offset: u32, from: &T) -> Option<()> {
    // SAFETY: the helper reads exactly `size_of::<T>()` bytes and checks the offset.
    let result = unsafe { bpf_skb_store_bytes(skb, offset, (&raw const *from).cast(), size_of::<T>() as u32, 0) };
    (result == 0).then_some(())
}
