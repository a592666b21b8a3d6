#pragma once

#include <exception>
#include <string>

namespace forge::app {

// Bytes that this process may have: the machine's memory and swap, or less where a control group or ulimit says so.
double memory_bytes();

// Throws Error where `what` would take more bytes than memory_bytes().
void check_memory(double bytes, const std::string& what);

// One sentence for what std::exception or torch says, with the bytes asked for where memory is at an end.
std::string sentence_of(const std::exception& error);

}  // namespace forge::app
