//! ringfence: run any bare-metal x86 guest on KVM, and get an honest verdict.
