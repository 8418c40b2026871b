//! Says that the process serves, once the services that it depends on have started. Ends at once.

use crate::state::lifecycle::{Lifecycle, Phase};
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;

/// The service; `app` makes it depend on the listeners.
pub struct Readiness(pub Arc<Lifecycle>);

#[async_trait]
impl BackgroundService for Readiness {
    async fn start(&self, _shutdown: ShutdownWatch) {
        self.0.enter_phase(Phase::Running);
        tracing::info!("ready");
    }
}
