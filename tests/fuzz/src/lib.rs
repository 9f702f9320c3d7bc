//! What must hold for any bytes, one module per reader of them. The fuzz targets call it, and so does `corpus_replay`, an ordinary
//! test of package `ingress`, with every file of the committed corpus.

pub mod client_hello;
pub mod config;
pub mod proxy_header;
pub mod rewrite;
pub mod traefik;
