//! The workloads, a file each.

mod bootstrap;
mod copy;
mod ls;
mod memory;
mod missing;
mod opens;
mod read;
mod requests;
mod share;
mod tar;
mod upload;

use crate::Result;
use crate::args::Workload;
use crate::context::Context;
pub use read::ROUND_TRIPS;
pub use upload::perform as perform_upload;

/// Runs one of them.
pub fn run(workload: Workload, context: &mut Context) -> Result<()> {
    match workload {
        Workload::Read => read::run(context),
        Workload::Tar => tar::run(context),
        Workload::Bootstrap => bootstrap::run(context),
        Workload::Web => bootstrap::run_web(context),
        Workload::Ls => ls::run(context),
        Workload::Missing => missing::run(context),
        Workload::Share => share::run(context),
        Workload::Requests => requests::run(context),
        Workload::Opens => opens::run(context),
        Workload::Memory => memory::run(context),
        Workload::Upload => upload::run(context),
        Workload::Copy => copy::run(context),
    }
}
