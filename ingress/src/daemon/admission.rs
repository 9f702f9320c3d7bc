//! Carries new rules of admission to the kernel, and ends the connections of those who may not come any more.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{AdmissionConfig, Config};
use crate::dataplane::Kernel;
use crate::flow::{FlowCommand, FlowFilter};
use crate::l4::outcome::EndReason;
use crate::snapshot::Snapshot;

/// Follows the snapshots until `stop`. The first one's rules are in the kernel already; an earlier daemon's connections may
/// be against them.
pub(super) async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    kernel: Kernel,
    commands: mpsc::Sender<FlowCommand>,
    stop: CancellationToken,
) {
    let mut current = snapshots.borrow_and_update().config.clone();
    cut_denied(&current.admission, &commands).await;
    while let Some(Ok(())) = stop.run_until_cancelled(snapshots.changed()).await {
        let next = snapshots.borrow_and_update().config.clone();
        let Config { admission, interfaces, .. } = &*current;
        if next.admission != *admission || next.interfaces != *interfaces {
            let (kernel, config) = (kernel.clone(), next.clone());
            // Programs are attached and maps filled: not on a thread that others wait for.
            if let Err(error) = tokio::task::spawn_blocking(move || kernel.admit(&config)).await {
                tracing::error!(%error, "admission stays as it was");
            }
        }
        if next.admission.deny != admission.deny {
            cut_denied(&next.admission, &commands).await;
        }
        current = next;
    }
}

async fn cut_denied(admission: &AdmissionConfig, commands: &mpsc::Sender<FlowCommand>) {
    if admission.deny.is_empty() {
        return;
    }
    let filter = FlowFilter { client_in: Some(admission.deny.clone()), ..FlowFilter::default() };
    // Refused only by a daemon that stops, and then nothing is left to cut.
    let _ = commands.send(FlowCommand::Cut { filter, reason: EndReason::Denied, done: None }).await;
}
