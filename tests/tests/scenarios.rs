//! End-to-end scenarios: the real daemon between real clients and real backends, in network namespaces.

mod scenarios {
    mod lab_itself;
    mod s0_hooks;
    mod s0_monitoring;
    mod s0_peers;
    mod s0_registration;
    mod s1_admission;
    mod s1_beginnings;
    mod s1_churn;
    mod s1_client_hello;
    mod s1_clients;
    mod s1_drain;
    mod s1_ends;
    mod s1_forged;
    mod s1_hints;
    mod s1_hosts;
    mod s1_import;
    mod s1_ipv6;
    mod s1_keepalive;
    mod s1_links;
    mod s1_loss;
    mod s1_network;
    mod s1_on_down;
    mod s1_operation;
    mod s1_passthrough;
    mod s1_path_mtu;
    mod s1_peers;
    mod s1_reasons;
    mod s1_reload;
    mod s1_resets;
    mod s1_restart;
    mod s1_survival;
    mod s1_transfer;
    mod s1_upgrade;
    mod s1_when_idle;
    mod s2_dashboard;
    mod s2_polling;
    mod s3_admin_socket;
    mod s4_ddns;
    mod s4_redis;
    mod s4_registry;
    mod s5_etcd;
}
