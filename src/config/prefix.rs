//! How prompts are cut into blocks, by which it is known what of them a backend has seen.

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::names;
use super::values::{self, KIB};

/// The blocks of prompts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    /// The length of a block of rendered text; of token ids, a block has a quarter as many.
    #[serde(deserialize_with = "values::size::<64, { 64 * KIB }, _>", serialize_with = "values::write_size")]
    pub block_bytes: usize,
    /// The blocks of a prompt that are told apart, from its start.
    #[serde(deserialize_with = "values::integer::<1, 65536, _>")]
    pub blocks_max: usize,
    /// The header that names the tenant; prompts of different tenants share nothing. `None` = all are one tenant's.
    #[serde(
        deserialize_with = "names::optional::<_, names::Header, _>",
        serialize_with = "names::write_header"
    )]
    pub tenant_header: Option<HeaderName>,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { block_bytes: KIB, blocks_max: 4096, tenant_header: None }
    }
}
