//! kvway, a KV-cache-aware gateway for fleets of LLM engines. This file only names the rooms, in reading order.
//!
//! `main` → [`app`] → [`proxy`], [`background`], [`admin`] → [`state`]; [`background`] → [`clients`]; [`config`] and
//! [`metrics`] may be named by all. ARCHITECTURE.md is the map.

pub mod config;

pub mod app;

pub mod proxy;

pub mod state;

pub mod background;

pub mod clients;

pub mod arguments;
pub mod compare;
pub mod demo;
pub mod doctor;
pub mod healthcheck;
pub mod replay;

pub mod access_log;
pub mod admin;
pub mod log;
pub mod metrics;
pub mod shutdown;
