//! XDP: admission before the host has spent anything on a packet.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use ingress_ebpf::admission::{Bytes, Plain, judge};

use super::admission::{Maps, device, policy};
use super::maps::{count, count_drop};

/// For native XDP.
#[xdp(frags)]
pub(crate) fn ingress_xdp(context: XdpContext) -> u32 {
    admit(&context)
}

/// For generic XDP: without `frags`, the kernel gives a packet one buffer. The copy that it makes otherwise loses the length
/// of the Ethernet header (`skb->mac_len`; seen on 6.18), and tc ingress finds none in front of the packet.
#[xdp]
pub(crate) fn ingress_xdp_skb(context: XdpContext) -> u32 {
    admit(&context)
}

#[inline(always)]
fn admit(context: &XdpContext) -> u32 {
    let Some(policy) = policy() else { return XDP_PASS };
    let ifindex = context.ingress_ifindex() as u32;
    let Some(verdict) = judge(policy, device(ifindex), &Frame(context), &Maps) else { return XDP_PASS };
    count(verdict);
    count_drop(ifindex, verdict);
    debug!(context, "not admitted: verdict {}, device {}", verdict as u32, ifindex);
    XDP_DROP
}

/// May lie in several buffers, of which only the first can be read directly.
struct Frame<'a>(&'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: a plain call on a valid context.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as usize }
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        let (start, size) = (self.0.data() + offset, size_of::<T>());
        if start + size <= self.0.data_end() {
            // SAFETY: the bounds have been checked, and the verifier knows what alignment a packet has on this machine.
            *into = unsafe { (start as *const T).read() };
            return Some(());
        }
        self.load_anywhere(offset, into)
    }

    #[inline(always)]
    fn load_anywhere<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        let size = size_of::<T>();
        // SAFETY: the helper writes exactly `size` bytes or fails.
        let result = unsafe { bpf_xdp_load_bytes(self.0.ctx, offset as u32, (&raw mut *into).cast(), size as u32) };
        (result == 0).then_some(())
    }

    /// Tags stand in the packet. Where the device takes them out, XDP cannot know; the daemon attaches no XDP to a device
    /// with VLANs.
    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        false
    }
}
