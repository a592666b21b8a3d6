#include <gtest/gtest.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace forge::rules {
namespace {

// What stands at one level of parentheses between two commas or semicolons.
struct Level {
  bool product = false, sum = false;
  bool contractible() const { return product && sum; }
};

std::string without_comments(const std::string& source) {
  std::istringstream lines(source);
  std::string line, text;
  while (std::getline(lines, line)) {
    if (line.starts_with("#")) continue;
    text += line.substr(0, line.find("//")) + "\n";
  }
  return text;
}

// Finds a product that is added to something without being spelled as fma: the compiler of another device could
// contract it, or not.
class UnspelledFma {
 public:
  explicit UnspelledFma(const std::string& source) : text_(without_comments(source)) { level(); }
  bool found() const { return found_; }

 private:
  static bool ends_operand(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ')' || c == ']';
  }

  void close(Level& l) {
    found_ = found_ || l.contractible();
    l = {};
  }

  // Reads until the parenthesis that closes this level; what is left of it is an operand of the level above.
  Level level() {
    Level l;
    char before = 0;  // the last character that is not a space
    while (at_ < text_.size()) {
      char c = text_[at_++];
      char before_c = at_ > 1 ? text_[at_ - 2] : ' ', next = at_ < text_.size() ? text_[at_] : ' ';
      if (c == '(') {
        bool call = std::isalnum(static_cast<unsigned char>(before)) || before == '_' || before == '>';
        Level inner = level();
        if (!call) l.product = l.product || (inner.product && !inner.sum);
        before = ')';
        continue;
      }
      if (c == ')') {
        found_ = found_ || l.contractible();
        return l;
      }
      if (c == ',' || c == ';' || c == '{' || c == '}' || c == '?' || c == ':') close(l);
      // The format writes a product as `a * b` and a pointer as `V* a`.
      if (c == '*' && next == ' ' && before_c == ' ') l.product = true;
      if ((c == '+' || c == '-') && next != c && before != c && (ends_operand(before) || next == '=')) l.sum = true;
      if (!std::isspace(static_cast<unsigned char>(c))) before = c;
    }
    close(l);
    return l;
  }

  std::string text_;
  std::size_t at_ = 0;
  bool found_ = false;
};

bool unspelled(const std::string& source) { return UnspelledFma(source).found(); }

// The functions over the value type; what prepare() computes in double stays on the host.
std::string functions_over_v(const std::string& commented) {
  std::string source = without_comments(commented);
  const std::string kStart = "template <class V>";
  std::string found;
  for (std::size_t at = source.find(kStart); at != std::string::npos; at = source.find(kStart, at)) {
    int depth = 0;
    do {
      depth += source[at] == '{' ? 1 : source[at] == '}' ? -1 : 0;
      found += source[at++];
    } while (at < source.size() && (depth > 0 || source[at - 1] != '}'));
    found += "\n";
  }
  return found;
}

TEST(RulesSpellTheirFma, TheScanSeesWhatItShould) {
  for (const char* bad : {"w = a * b + c;", "w = c - a * b;", "w += a * b;", "w = (a * b) + c;", "f(x, a * b - c);",
                          "w = c + V(s.lr) * g;", "w = c + sqrt(x) * (g - m);", "w = fma(a, b, c * d - e);"})
    EXPECT_TRUE(unspelled(bad)) << bad;
  for (const char* good :
       {"w = fma(a, b, c);", "w = fma(a, b, c * d);", "w = fma(a, b, -(c * d / e));", "// w = a * b + c",
        "V* m = x + y;", "w = (a + b) * c;", "static void update(V& w, V g, V* moment, const Step& s) { w = w + g; }",
        "w = a * -b;", "x = f(a * b) + g(c);", "for (int i = 0; i < n; ++i) w = a * b;"})
    EXPECT_FALSE(unspelled(good)) << good;
}

TEST(RulesSpellTheirFma, OnlyFunctionsOverTheValueTypeAreScanned) {
  EXPECT_EQ(functions_over_v("Step f() { return 1 - a * b; }\n"
                             "template <class V>\nV g(V a) { if (a) { a = b; } return a; }\nint h();"),
            "template <class V>\nV g(V a) { if (a) { a = b; } return a; }\n");
}

TEST(RulesSpellTheirFma, NoRuleLeavesOneToTheCompiler) {
  std::filesystem::path folder = std::filesystem::path(__FILE__).parent_path();
  ASSERT_TRUE(std::filesystem::exists(folder / "list.h")) << folder << " is not where the sources are";
  int rules = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".h") continue;
    std::ifstream file(entry.path());
    std::stringstream text;
    text << file.rdbuf();
    std::string functions = functions_over_v(text.str());
    EXPECT_FALSE(unspelled(functions)) << entry.path() << " adds a product to something without fma";
    if (text.str().find("struct Step {") == std::string::npos) continue;
    EXPECT_FALSE(functions.empty()) << entry.path() << " has a rule that the scan does not find";
    ++rules;
  }
  EXPECT_GE(rules, 20) << "the scan no longer finds the files of rules";
}

}  // namespace
}  // namespace forge::rules
