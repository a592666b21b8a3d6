#pragma once

#include <iostream>
#include <sstream>
#include <string>

namespace forge::gpu_check {

// One row of results as a line of JSON on standard output.
class Row {
 public:
  explicit Row(const std::string& part) { add("part", part); }
  Row& add(const char* key, const std::string& value) {
    begin(key) << '"';
    for (char c : value) text_ << (c == '"' || c == '\\' ? "\\" : "") << (c == '\n' ? ' ' : c);
    text_ << '"';
    return *this;
  }
  Row& add(const char* key, double value) {
    begin(key) << value;
    return *this;
  }
  ~Row() { std::cout << '{' << text_.str() << "}" << std::endl; }

 private:
  std::ostream& begin(const char* key) {
    if (text_.tellp() > 0) text_ << ", ";
    text_.precision(9);
    return text_ << '"' << key << "\": ";
  }
  std::ostringstream text_;
};

// The parts of the check; each writes rows. small: what an emulator can run. False where something is wrong.
bool check_bits(bool small);
bool check_gradient(bool small);
bool check_hopper(bool small);  // and its speed where it is not small
bool check_graph();
bool measure_speed();
bool measure_hopper();

}  // namespace forge::gpu_check
