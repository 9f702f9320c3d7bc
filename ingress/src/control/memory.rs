//! Memory that reading a configuration needed in between.

/// Gives back to the kernel what this thread has freed. Reading a large file takes several times its size, which the allocator
/// would keep for the next time.
pub(super) fn give_back() {
    // SAFETY: no preconditions. In a process with another allocator, such as a test's, it finds nothing.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
