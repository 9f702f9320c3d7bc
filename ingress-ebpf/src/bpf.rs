//! tc and XDP programs, their maps, and access to packets.

mod admission;
mod exit;
mod maps;
mod options;
mod packet;
mod tc_in;
mod tc_out;
mod xdp;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// bpf_l4_csum_replace and bpf_loop are open to every licence, bpf_redirect_neigh to GPL-compatible ones.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
